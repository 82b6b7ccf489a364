//! A kubelet that is killed at any step of a pod's life: the next one goes on from there.

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use futures::future::join_all;
use tempfile::TempDir;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::fake_cri::{FakeCri, Trap};

/// How long a step of a pod's life may take, on a machine that others use too.
const PATIENCE: Duration = Duration::from_secs(60);

const POD: &str = "apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  terminationGracePeriodSeconds: 1
  initContainers:
  - {name: first, image: 'fake/image:1', command: [ends]}
  containers:
  - {name: a, image: 'fake/image:1', command: [runs]}
  - {name: b, image: 'fake/image:1', command: [runs]}
";

/// A node with nothing of Kubernetes but a kubelet, which can be killed.
struct Machine {
    dir: TempDir,
    cri: FakeCri,
    endpoint: String,
}

/// A kubelet with threads of its own, so that it can end as a killed process does: in the middle of whatever it does.
struct Kubelet(Option<tokio::runtime::Runtime>);

impl Drop for Kubelet {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

impl Machine {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["manifests", "pods", "root"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let cri = FakeCri::default();
        let endpoint = format!("unix://{}", cri.serve(dir.path()).display());
        Machine { dir, cri, endpoint }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Puts the pod's manifest where the kubelet looks, whole.
    fn place_manifest(&self) {
        self.place("web.yaml", POD);
    }

    fn place(&self, name: &str, manifest: &str) {
        let fresh = self.path("fresh.yaml");
        std::fs::write(&fresh, manifest).unwrap();
        std::fs::rename(fresh, self.path("manifests").join(name)).unwrap();
    }

    fn manifest(&self) -> PathBuf {
        self.path("manifests/web.yaml")
    }

    fn start_kubelet(&self) -> Kubelet {
        self.start_kubelet_with(|config| config)
    }

    fn start_kubelet_with(&self, change: impl FnOnce(kubelet::Config) -> kubelet::Config) -> Kubelet {
        let config = kubelet::Config {
            node_name: "node1".into(),
            node_ips: vec![[127, 0, 0, 1].into()],
            root_dir: self.path("root"),
            cert_dir: self.path("root/pki"),
            log_root: self.path("pods"),
            log_links: None,
            runtime_endpoint: self.endpoint.clone(),
            address: ([127, 0, 0, 1], 0).into(),
            healthz_address: None,
            static_pod_path: Some(self.path("manifests")),
            file_check_frequency: Duration::from_millis(100),
            cgroups_per_qos: false,
            ..kubelet::Config::default()
        };
        let config = change(config);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.spawn(kubelet::run(config, None, CancellationToken::new()));
        Kubelet(Some(runtime))
    }

    fn is_settled(&self) -> bool {
        self.cri.running() == ["a", "b"] && self.cri.ready_sandboxes() == 1
    }

    #[track_caller]
    fn check_no_mistake(&self, when: &str) {
        let mistakes = self.cri.mistakes();
        assert!(mistakes.is_empty(), "{when}: {mistakes:?}; {:?}", self.cri.calls());
    }

    async fn until(&self, when: &str, what: &str, holds: impl Fn(&Self) -> bool) {
        if tokio::time::timeout(PATIENCE, self.cri.until(|| holds(self))).await.is_err() {
            panic!("{when}: never {what}; {:?}; {:?}", self.cri.running(), self.cri.calls());
        }
    }
}

/// A pod comes, runs, and goes; the kubelet is killed where the trap says. Gives the calls that changed something.
async fn live(trap: Option<Trap>) -> Vec<&'static str> {
    let when = format!("{trap:?}");
    let machine = Machine::new();
    machine.cri.set_trap(trap);
    machine.place_manifest();
    let mut kubelet = machine.start_kubelet();
    let mut killed = false;
    let mut reach = async |what: &str, holds: fn(&Machine) -> bool| {
        tokio::select! {
            () = machine.until(&when, what, holds) => return,
            () = machine.cri.sprung(), if !killed => {}
        }
        killed = true;
        kubelet = machine.start_kubelet(); // the one before is dropped, and with it all that it did
        machine.until(&when, what, holds).await;
    };
    reach("runs", Machine::is_settled).await;
    machine.check_no_mistake(&when);
    // An init container that has done its work does not run again, unless nobody could know that it had.
    assert!(machine.cri.count_of("first") <= 2, "{when}: {:?}", machine.cri.calls());
    std::fs::remove_file(machine.manifest()).unwrap();
    reach("gone", |m| m.cri.is_empty()).await;
    machine.check_no_mistake(&when);
    machine.cri.calls()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kubelet_that_is_killed_at_any_call_leaves_a_pod_that_the_next_one_takes_on() {
    let calls = live(None).await;
    for call in ["PullImage", "RunPodSandbox", "CreateContainer", "StartContainer", "StopContainer", "StopPodSandbox"] {
        assert!(calls.contains(&call), "{call} is missing in {calls:?}");
    }
    let traps = (0..calls.len()).flat_map(|call| [false, true].map(|after| Trap { call, after }));
    join_all(traps.map(|trap| live(Some(trap)))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containers_that_end_or_are_lost_are_started_again() {
    let machine = Machine::new();
    machine.place_manifest();
    let _kubelet = machine.start_kubelet();
    machine.until("start", "runs", Machine::is_settled).await;
    machine.cri.end("a", 1);
    machine.until("a ended", "runs again", |m| m.is_settled() && m.cri.count_of("a") == 2).await;
    machine.cri.lose("b");
    machine.until("b lost", "runs again", Machine::is_settled).await;
    machine.check_no_mistake("after all");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_hangs_keeps_only_its_own_pod() {
    let machine = Machine::new();
    machine.cri.set_trap(Some(Trap { call: 0, after: false }));
    machine.place_manifest();
    let _kubelet = machine.start_kubelet();
    machine.cri.sprung().await;
    machine.place("other.yaml", &POD.replace("name: web", "name: other"));
    machine.until("another pod hangs", "runs", Machine::is_settled).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_runs_keeps_its_place_while_its_devices_are_not_known_again() {
    let machine = Machine::new();
    let asks = "{name: a, image: 'fake/image:1', command: [runs], resources: {limits: {example.com/toy: 1}}}";
    machine.place("web.yaml", &POD.replace("{name: a, image: 'fake/image:1', command: [runs]}", asks));
    let first = machine.start_kubelet();
    machine.until("start", "runs", Machine::is_settled).await;
    drop(first);
    // The next kubelet knows of the devices, but their plugin has not come yet; nor does the runtime tell at once what runs.
    std::fs::create_dir_all(machine.path("root/device-plugins")).unwrap();
    let known = r#"{"resources": ["example.com/toy"]}"#;
    std::fs::write(machine.path("root/device-plugins/allocations.json"), known).unwrap();
    machine.cri.set_silent(true);
    let _second = machine.start_kubelet();
    machine.until("silence", "asked again", |m| m.cri.asked_in_vain() >= 5).await;
    machine.cri.set_silent(false);
    machine.cri.end("b", 1);
    machine.until("b ended", "runs again", |m| m.is_settled() && m.cri.count_of("b") == 2).await;
    assert_eq!(machine.cri.count_of("a"), 1);
    machine.check_no_mistake("after all");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containers_that_ran_before_are_moved_to_the_cpus_that_they_share_though_it_fails_at_first() {
    let machine = Machine::new();
    machine.place_manifest();
    let first = machine.start_kubelet();
    machine.until("start", "runs", Machine::is_settled).await;
    drop(first);
    let file = machine.path("kubelet.yaml");
    let text = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\ncpuManagerPolicy: static\n\
                reservedSystemCPUs: '0'\ncpuManagerReconcilePeriod: 1s\n";
    std::fs::write(&file, text).unwrap();
    let flags = kubelet::Flags::try_parse_from(["kubelet".into(), format!("--config={}", file.display())]).unwrap();
    let cpu_policy = flags.complete().unwrap().cpu_policy;
    machine.cri.refuse_updates(1);
    let _second = machine.start_kubelet_with(|config| kubelet::Config { cpu_policy, ..config });
    machine.until("a static policy", "moved them", |m| m.is_settled() && m.cri.has_moved_all()).await;
}

const NO_PODS: &str = r#"{"kind": "PodList", "apiVersion": "v1", "items": []}"#;

/// A URL of which the test says what it shows.
struct Page {
    url: String,
    shows: watch::Sender<Option<String>>,
    asked_times: watch::Receiver<usize>,
}

impl Page {
    /// Shows the pod.
    async fn serve() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/pods", listener.local_addr().unwrap());
        let (shows, shown) = watch::channel(Some(POD.to_owned()));
        let (asked, asked_times) = watch::channel(0);
        tokio::spawn(serve_page(listener, shown, asked));
        Page { url, shows, asked_times }
    }

    fn given_to(&self, config: kubelet::Config) -> kubelet::Config {
        let headers = vec![("x-key".to_owned(), "opens".to_owned())];
        let static_pod_url = Some((self.url.clone(), headers));
        kubelet::Config { static_pod_url, http_check_frequency: Duration::from_secs(1), ..config }
    }

    /// Returns when it has been asked so many times more.
    async fn asked_again(&self, times: usize) {
        let mut asked = self.asked_times.clone();
        let until = *asked.borrow() + times;
        let waited = tokio::time::timeout(PATIENCE, asked.wait_for(|times| *times >= until)).await;
        waited.expect("it is asked again").unwrap();
    }
}

/// Answers each request on this port with what `page` holds; with nothing, it hangs up.
async fn serve_page(
    listener: tokio::net::TcpListener,
    page: watch::Receiver<Option<String>>,
    asked_times: watch::Sender<usize>,
) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    while let Ok((mut socket, _)) = listener.accept().await {
        let mut request = vec![0; 4096];
        let read = socket.read(&mut request).await.unwrap_or_default();
        let asked = String::from_utf8_lossy(&request[..read]).into_owned();
        asked_times.send_modify(|times| *times += 1);
        let page = page.borrow().clone().filter(|_| asked.contains("x-key: opens"));
        let Some(page) = page else { continue };
        let answer = format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{page}", page.len());
        // Whoever has hung up meanwhile asks again.
        let _ = socket.write_all(answer.as_bytes()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn static_pods_come_from_a_url_and_stay_while_it_says_nothing() {
    let machine = Machine::new();
    let page = Page::serve().await;
    let _kubelet = machine.start_kubelet_with(|config| page.given_to(config));
    machine.until("start", "runs", Machine::is_settled).await;
    page.shows.send_replace(None);
    let calls = machine.cri.calls();
    page.asked_again(3).await;
    assert!(machine.is_settled());
    assert_eq!(machine.cri.calls(), calls);
    page.shows.send_replace(Some(NO_PODS.to_owned()));
    machine.until("no pod any more", "gone", |m| m.cri.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kubelet_that_starts_while_its_url_says_nothing_stops_none_of_its_pods() {
    let machine = Machine::new();
    let page = Page::serve().await;
    let first = machine.start_kubelet_with(|config| page.given_to(config));
    machine.until("start", "runs", Machine::is_settled).await;
    drop(first);
    page.shows.send_replace(None);
    machine.place("other.yaml", &POD.replace("name: web", "name: other"));
    let _second = machine.start_kubelet_with(|config| page.given_to(config));
    let both_run = |m: &Machine| m.cri.running() == ["a", "a", "b", "b"];
    machine.until("a silent URL", "runs beside it", both_run).await;
    page.asked_again(3).await;
    assert!(!machine.cri.calls().contains(&"StopContainer"), "{:?}", machine.cri.calls());
    page.shows.send_replace(Some(NO_PODS.to_owned()));
    machine.until("no pod of the URL any more", "gone", Machine::is_settled).await;
}
