//! Streams into containers, over both of the protocols that clients speak.

use std::io::{BufRead, BufReader, Write};
use std::process::Child;

use super::host::{Host, said};
use super::{OneNode, hello};

/// What makes kubectl speak SPDY, as clients before v1.31 do.
const SPDY: [(&str, &str); 2] =
    [("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", "false"), ("KUBECTL_PORT_FORWARD_WEBSOCKETS", "false")];

#[test]
fn streams_go_over_websocket_and_spdy() {
    let cluster = OneNode::start(&[]);
    let host = &cluster.host;
    host.kubectl_ok(&["apply", "-f", "-"], &hello());
    host.kubectl_ok(&["rollout", "status", "deployment/hello", "--timeout=100s"], "");
    let echo = r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"echo"},"spec":{"containers":[{"name":"c",
        "image":"kelson.local/hello:1","imagePullPolicy":"Never","stdin":true,
        "command":["sh","-c","while read -r line; do echo \"heard $line\"; done"]}]}}"#;
    host.kubectl_ok(&["apply", "-f", "-"], echo);
    host.kubectl_ok(&["wait", "--for=condition=Ready", "pod/echo", "--timeout=100s"], "");
    for (protocol, environment, port) in [("WebSocket", &[][..], "18080"), ("SPDY", &SPDY[..], "18081")] {
        execs(host, protocol, environment);
        attaches(host, protocol, environment);
        forwards(host, protocol, environment, port);
    }
}

fn execs(host: &Host, protocol: &str, environment: &[(&str, &str)]) {
    let exec = |words: &[&str], input: &str| {
        let mut command = host.kubectl_command(&[&["exec", "-i", "deploy/hello", "--"], words].concat());
        command.envs(environment.iter().copied());
        said(command, input)
    };
    // More than any window or buffer on the way, there and back.
    let long = "0123456789abcdef".repeat(40_000);
    let echoed = exec(&["cat"], &long);
    assert!(
        echoed.ok && echoed.out == long,
        "{protocol}: {} of {} bytes: {}",
        echoed.out.len(),
        long.len(),
        echoed.err
    );
    let apart = exec(&["sh", "-c", "echo out; echo err >&2"], "");
    assert_eq!((apart.out.as_str(), apart.err.as_str()), ("out\n", "err\n"), "{protocol}");
    let failed = exec(&["sh", "-c", "exit 7"], "");
    assert!(!failed.ok && failed.err.contains("exit code 7"), "{protocol}: {failed:?}");
}

fn attaches(host: &Host, protocol: &str, environment: &[(&str, &str)]) {
    let mut command = host.kubectl_command(&["attach", "-i", "echo"]);
    let mut attached = command.envs(environment.iter().copied()).spawn().unwrap();
    writeln!(attached.stdin.as_mut().unwrap(), "{protocol}").unwrap();
    let heard = format!("heard {protocol}");
    assert!(says(&mut attached, &heard), "{protocol}: attach does not say {heard:?}");
    end(attached);
}

fn forwards(host: &Host, protocol: &str, environment: &[(&str, &str)], port: &str) {
    let mut command = host.kubectl_command(&["port-forward", "deploy/hello", &format!("{port}:8080")]);
    let mut forward = command.envs(environment.iter().copied()).spawn().unwrap();
    assert!(says(&mut forward, "Forwarding from"), "{protocol}: nothing is forwarded");
    // One connection after the other over the same session.
    for _ in 0..3 {
        host.wait_for_page(&format!("http://127.0.0.1:{port}/"), "Hello from Kelson");
    }
    end(forward);
}

/// Whether a line with this is printed before the output ends.
fn says(process: &mut Child, wanted: &str) -> bool {
    let lines = BufReader::new(process.stdout.as_mut().unwrap()).lines();
    lines.map_while(Result::ok).any(|line| line.contains(wanted))
}

fn end(mut process: Child) {
    process.kill().unwrap();
    process.wait().unwrap();
}
