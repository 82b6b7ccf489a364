//! `cargo xtask up`: from a bare checkout to a page that a real container serves.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::{debian, down, shell, trial};

const NODE_PORT: u16 = 30080;
const HELLO_IMAGE: &str = "kelson.local/hello:1";

pub(crate) fn run() -> Result<()> {
    debian::install(debian::NODE)?;
    shell::run("cargo", &["build", "--release", "--package=kelson"])?;
    if trial::namespace_exists() {
        println!("removing the trial cluster of an earlier run");
        down::run()?;
    }
    fs::create_dir_all(trial::data_dir().join("images"))?;
    trial::make_namespace()?;
    pack_hello_image()?;

    let started = Instant::now();
    start()?;
    wait_until(started, "the node to be ready", || {
        kubectl(&["wait", "--for=condition=Ready", "node", "--all", "--timeout=1s"]).is_ok()
    })?;
    kubectl(&["apply", "-f", &shell::root().join("examples/hello.yaml").to_string_lossy()])?;
    let mut page = String::new();
    wait_until(started, "the hello page", || {
        page = fetch().unwrap_or_default();
        page.contains("Hello from Kelson")
    })?;
    println!();
    println!("The hello workload answers {:.1} s after the start:", started.elapsed().as_secs_f64());
    println!("  curl http://{}:{NODE_PORT}/", trial::NODE_ADDRESS);
    println!("  kubectl --kubeconfig {} get pods -o wide", trial::kubeconfig().display());
    println!("`cargo xtask down` removes the cluster.");
    Ok(())
}

/// Busybox' web server and one page, as an image archive that is imported when the cluster starts.
fn pack_hello_image() -> Result<()> {
    let root = trial::dir().join("hello-image");
    fs::create_dir_all(root.join("bin"))?;
    fs::create_dir_all(root.join("www"))?;
    fs::create_dir_all(root.join("tmp"))?;
    fs::copy("/bin/busybox", root.join("bin/busybox")).context("busybox-static is not installed")?;
    for applet in ["sh", "ls", "cat", "echo", "sleep", "wget", "nslookup", "nc", "tar", "env", "hostname"] {
        let link = root.join("bin").join(applet);
        if !link.exists() {
            std::os::unix::fs::symlink("busybox", link)?;
        }
    }
    fs::write(root.join("www/index.html"), "Hello from Kelson\n")?;
    let archive = trial::data_dir().join("images/hello.tar");
    let args = [
        "images".as_ref(),
        "pack".as_ref(),
        archive.as_os_str(),
        root.as_os_str(),
        "--name".as_ref(),
        HELLO_IMAGE.as_ref(),
        "--cmd=/bin/busybox".as_ref(),
        "--cmd=httpd".as_ref(),
        "--cmd=-f".as_ref(),
        "--cmd=-p".as_ref(),
        "--cmd=8080".as_ref(),
        "--cmd=-h".as_ref(),
        "--cmd=/www".as_ref(),
    ];
    shell::run(&binary(), &args)
}

pub(crate) fn binary() -> String {
    shell::root().join("target/release/kelson").to_string_lossy().into_owned()
}

fn start() -> Result<()> {
    let log = fs::File::create(trial::log_file())?;
    let mut command = trial::inside(&binary());
    command
        .arg("up")
        .arg(format!("--data-dir={}", trial::data_dir().display()))
        .arg(format!("--node-ip={}", trial::NODE_ADDRESS))
        .arg("--node-name=trial")
        .arg(format!("--write-kubeconfig={}", trial::kubeconfig().display()))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(0);
    let child = command.spawn().context("cannot start kelson")?;
    fs::write(trial::pid_file(), child.id().to_string())?;
    Ok(())
}

fn kubectl(args: &[&str]) -> Result<String> {
    let done = Command::new("kubectl")
        .arg(format!("--kubeconfig={}", trial::kubeconfig().display()))
        .args(args)
        .output()
        .context("cannot run kubectl")?;
    if !done.status.success() {
        bail!("kubectl {}: {}", args.join(" "), String::from_utf8_lossy(&done.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}

fn fetch() -> Result<String> {
    let address = format!("{}:{NODE_PORT}", trial::NODE_ADDRESS).parse()?;
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn wait_until(started: Instant, what: &str, mut holds: impl FnMut() -> bool) -> Result<()> {
    while !holds() {
        if started.elapsed() > Duration::from_secs(120) {
            bail!("gave up waiting for {what}; see {}", trial::log_file().display());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    println!("{:6.1} s  {what}", started.elapsed().as_secs_f64());
    Ok(())
}
