//! A node whose logind is a pair of scripts that answer as its programs do.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::*;

fn put(dir: &Path, name: &str, script: &str) {
    let path = dir.join(name);
    std::fs::write(&path, format!("#!/bin/sh\ncd {}\n{script}", dir.display())).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// It waits 5 s until it is told to read its configuration again, then 30 s. What it says stands in `signals`, a pipe.
fn logind(dir: &Path) -> Logind {
    let busctl = r#"case "$*" in
*InhibitDelayMaxUSec*) test -e reloaded && echo '{"type":"t","data":30000000}' || echo '{"type":"t","data":5000000}' ;;
*KillUnit*) grep -q InhibitDelayMaxSec=30 logind.conf.d/99-kubelet.conf && touch reloaded ;;
*monitor*) exec cat signals ;;
esac
"#;
    put(dir, "busctl", busctl);
    put(dir, "systemd-inhibit", "echo \"$1 $2 $3\" >> locks\nexec cat\n");
    nix::unistd::mkfifo(&dir.join("signals"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    Logind::in_dir(dir)
}

fn signal(is_on: bool) -> String {
    format!(
        "{{\"type\":\"signal\",\"member\":\"PrepareForShutdown\",\"payload\":{{\"type\":\"b\",\"data\":[{is_on}]}}}}\n"
    )
}

fn pod(name: &str, priority: i32) -> Arc<Pod> {
    let spec = serde_json::json!({"containers": [], "priority": priority, "terminationGracePeriodSeconds": 3});
    serde_json::from_value(serde_json::json!({"metadata": {"name": name, "uid": name}, "spec": spec})).unwrap()
}

#[tokio::test]
async fn pods_end_before_the_node_may_go_and_a_shutdown_can_be_called_off() {
    use tokio::io::AsyncWriteExt;
    let dir = tempfile::tempdir().unwrap();
    let logind = logind(dir.path());
    let context = Arc::new(Context::alone(dir.path()));
    let pods = [pod("plain", 0), pod("critical", 2_000_000_000)];
    context.admitted.set(pods.into_iter().map(|p| (p.metadata.uid.clone().unwrap(), p)).collect());
    let shutdown = Shutdown::of(Duration::from_secs(30), Duration::from_secs(10));
    let stop = CancellationToken::new();
    let watching = tokio::spawn(watch(Arc::clone(&context), shutdown, logind, stop.clone()));
    let mut signals = tokio::fs::OpenOptions::new().write(true).open(dir.path().join("signals")).await.unwrap();
    signals.write_all(signal(true).as_bytes()).await.unwrap();
    signals.flush().await.unwrap();
    context.pressures_changed.notified().await;
    assert_eq!(context.shutting_down.refusal().unwrap().reason, "NodeShutdown");
    context.dooms.added().await;
    let doom = context.dooms.of("plain").unwrap();
    assert_eq!((doom.reason.as_str(), doom.grace), ("Terminated", Some(3)));
    signals.write_all(signal(false).as_bytes()).await.unwrap();
    signals.flush().await.unwrap();
    context.pressures_changed.notified().await;
    assert!(!context.shutting_down.is_on());
    assert!(context.dooms.of("critical").is_some());
    let locks = || std::fs::read_to_string(dir.path().join("locks")).unwrap();
    while locks().lines().count() < 2 {
        tokio::task::yield_now().await;
    }
    assert_eq!(locks(), "--what=shutdown --who=kubelet --mode=delay\n".repeat(2));
    stop.cancel();
    watching.await.unwrap();
}
