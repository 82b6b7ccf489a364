//! The recorded answers of a real API server, where their folder stands beside the checkout: a kube-apiserver of ours alone
//! is held against all of them.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::shell;
use crate::test::{Count, python};

/// Cases that do not pass whole yet. One that passes must leave this list, and one that is not in it must pass.
const OPEN: &[&str] = &[
    // Recorded with a volume source that a distribution's service account plugin adds, and that pods could not mount here.
    "admission/pods.yaml",
    "kinds/pod.yaml",
    // An update that changes nothing is written upstream.
    "kinds/storage.yaml",
    // Holds an age in days, which was true on the day of the recording.
    "negotiation/table.yaml",
];

const READY_WITHIN: Duration = Duration::from_secs(60);

/// A started API server and its files. It ends with this value.
struct Server {
    process: Child,
    dir: PathBuf,
    port: u16,
}

pub(crate) fn run() -> Result<Count> {
    let folder = shell::root().join("../shared/golden");
    if !folder.join("replay.py").exists() {
        println!("recorded answers: skipped, there is no {}", folder.display());
        return Ok(Count { skipped: 1, ..Count::default() });
    }
    let server = Server::start(&folder.join("users.csv"))?;
    let mut total = Count::default();
    // A case of its own each: the checker ends at the first one that it cannot prepare.
    for case in cases(&folder.join("cases"))? {
        let mut count = server.check(&folder, &case)?;
        let Count { passed, failed, .. } = count;
        let open = OPEN.contains(&case.as_str());
        println!("recorded answers: {case}{}: {passed} passed, {failed} failed", if open { " (open)" } else { "" });
        if open && failed == 0 {
            println!("{case} passes: it must leave the list of open cases");
            count.failed = 1;
        } else if open {
            count = Count { passed, failed: 0, skipped: failed };
        }
        total += count;
    }
    Ok(total)
}

/// The case files as the checker names them: `area/name.yaml`.
fn cases(folder: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for area in fs::read_dir(folder)? {
        let area = area?;
        for case in fs::read_dir(area.path())? {
            names.push(format!("{}/{}", area.file_name().to_string_lossy(), case?.file_name().to_string_lossy()));
        }
    }
    names.sort();
    Ok(names)
}

impl Server {
    fn start(users: &Path) -> Result<Self> {
        let dir = shell::root().join("target/recorded-answers");
        if dir.exists() {
            fs::remove_dir_all(&dir)?;
        }
        fs::create_dir_all(&dir)?;
        let key = dir.join("sa.key").to_string_lossy().into_owned();
        shell::output("openssl", &["genrsa", "-out", &key, "2048"])?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let log = fs::File::create(dir.join("log"))?;
        let process = Command::new(shell::root().join("target/debug/kelson"))
            .args(["kube-apiserver", "--bind-address=127.0.0.1", "--authorization-mode=Node,RBAC"])
            .args(["--service-cluster-ip-range=10.96.0.0/16", "--allow-privileged=true"])
            .arg("--service-account-issuer=https://kubernetes.default.svc.cluster.local")
            .arg(format!("--service-account-key-file={key}"))
            .arg(format!("--service-account-signing-key-file={key}"))
            .arg(format!("--secure-port={port}"))
            .arg(format!("--data-dir={}", dir.join("store").display()))
            .arg(format!("--cert-dir={}", dir.join("certificates").display()))
            .arg(format!("--token-auth-file={}", users.display()))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot start target/debug/kelson")?;
        let server = Server { process, dir, port };
        let started = Instant::now();
        while !server.is_ready() {
            if started.elapsed() > READY_WITHIN {
                bail!("the API server is not ready; see {}", server.dir.join("log").display());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(server)
    }

    fn is_ready(&self) -> bool {
        let url = format!("https://127.0.0.1:{}/readyz", self.port);
        let code = "import ssl,sys,urllib.request as u; \
                    u.urlopen(sys.argv[1], context=ssl._create_unverified_context(), timeout=2)";
        shell::output("python3", &["-c", code, &url]).is_ok()
    }

    fn check(&self, folder: &Path, case: &str) -> Result<Count> {
        let done = Command::new(python())
            .arg(folder.join("replay.py"))
            .arg(format!("--server=https://127.0.0.1:{}", self.port))
            .arg(format!("--token-file={}", folder.join("users.csv").display()))
            .args(["--patience", "5", "check"])
            .arg(folder.join("cases"))
            .args(["--only", case])
            .output()
            .context("cannot run the checker")?;
        let text = String::from_utf8_lossy(&done.stdout);
        if let Some(count) = text.lines().rev().find_map(closing) {
            if count.failed > 0 && !OPEN.contains(&case) {
                println!("{text}");
            }
            return Ok(count);
        }
        if !OPEN.contains(&case) {
            println!("{text}{}", String::from_utf8_lossy(&done.stderr));
        }
        Ok(Count { failed: 1, ..Count::default() })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The checker's last line: `N passed, N failed`.
fn closing(line: &str) -> Option<Count> {
    let (passed, failed) = line.trim().strip_suffix(" failed")?.split_once(" passed, ")?;
    Some(Count { passed: passed.parse().ok()?, failed: failed.parse().ok()?, skipped: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checkers_closing_line_is_read() {
        assert_eq!(closing("12 passed, 3 failed"), Some(Count { passed: 12, failed: 3, skipped: 0 }));
        assert_eq!(closing("FAIL step 3: failed"), None);
    }
}
