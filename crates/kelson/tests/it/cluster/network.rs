//! Services, policies and the network between nodes.

use std::process::{Child, Stdio};

use super::host::{Host, Network, Said, holds_in_time, pack_image};
use super::{OneNode, hello, turn};

const READY: &str = "jsonpath={.status.readyReplicas}";
const PAGE: &str = "Hello from Kelson";

/// A pod with a page, on a node or anywhere.
fn pod(name: &str, node: Option<&str>) -> String {
    let node = node.map(|node| format!(r#""nodeName":"{node}","#)).unwrap_or_default();
    format!(
        r#"{{"apiVersion":"v1","kind":"Pod","metadata":{{"name":"{name}","labels":{{"app":"{name}"}}}},"spec":{{{node}
        "terminationGracePeriodSeconds":0,"containers":[{{"name":"c","image":"kelson.local/hello:1","imagePullPolicy":"Never",
        "ports":[{{"name":"web","containerPort":8080}}]}}]}}}}"#
    )
}

fn address(host: &Host, pod: &str) -> String {
    host.until(&["get", "pod", pod, "-o", "jsonpath={.status.podIP}"], |ip| !ip.is_empty());
    host.until(&["get", "pod", pod, "-o", "jsonpath={.status.phase}"], |phase| phase == "Running");
    host.kubectl_ok(&["get", "pod", pod, "-o", "jsonpath={.status.podIP}"], "")
}

/// What a pod sees at an address.
fn fetched_by(host: &Host, pod: &str, url: &str) -> Said {
    host.kubectl(&["exec", pod, "--", "busybox", "timeout", "2", "wget", "-qO-", url], "")
}

#[track_caller]
fn wait_until_pod(host: &Host, pod: &str, url: &str, reaches: bool) {
    let mut last = None;
    let done = holds_in_time(|| {
        let said = fetched_by(host, pod, url);
        let holds = said.out.contains(PAGE) == reaches;
        last = Some(said);
        holds
    });
    assert!(done, "{pod} to {url}: {last:?}\n{}\n{}", host.run("nft", &["list", "ruleset"]).out, host.log());
}

#[test]
fn a_policy_keeps_pods_apart_and_lets_through_what_it_allows() {
    let cluster = OneNode::start(&[]);
    let host = &cluster.host;
    for name in ["web", "friend", "stranger"] {
        host.kubectl_ok(&["apply", "-f", "-"], &pod(name, None));
    }
    let web = format!("http://{}:8080/", address(host, "web"));
    for name in ["friend", "stranger"] {
        address(host, name);
        wait_until_pod(host, name, &web, true);
    }
    let policy = |ingress: &str| {
        format!(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: web}}\n\
             spec: {{podSelector: {{matchLabels: {{app: web}}}}, ingress: {ingress}}}\n"
        )
    };
    host.kubectl_ok(&["apply", "-f", "-"], &policy("[]"));
    wait_until_pod(host, "friend", &web, false);
    wait_until_pod(host, "stranger", &web, false);
    // The node itself, as its probes do, reaches its pods all the same.
    assert!(host.fetch(&web).out.contains(PAGE));
    host.kubectl_ok(
        &["apply", "-f", "-"],
        &policy("[{from: [{podSelector: {matchLabels: {app: friend}}}], ports: [{port: web}]}]"),
    );
    wait_until_pod(host, "friend", &web, true);
    assert!(!fetched_by(host, "stranger", &web).out.contains(PAGE));
    // On the way out, names can be asked for as the usual rule has it.
    let egress = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: friend}\n\
        spec: {podSelector: {matchLabels: {app: friend}}, policyTypes: [Egress]}\n";
    host.kubectl_ok(&["apply", "-f", "-"], egress);
    wait_until_pod(host, "friend", &web, false);
    host.kubectl_ok(&["delete", "networkpolicy", "--all"], "");
    for name in ["friend", "stranger"] {
        wait_until_pod(host, name, &web, true);
    }
    let tables = host.run("nft", &["list", "tables"]);
    assert!(
        holds_in_time(|| !host.run("nft", &["list", "tables"]).out.contains("kelson-network-policy")),
        "{tables:?}"
    );
}

/// Two nodes of one cluster.
fn two_nodes(network: &Network, flags: &[&str]) -> (Host, Host) {
    let (mut one, two) = (network.host(1), network.host(2));
    for host in [&one, &two] {
        pack_image(host);
    }
    bring_up(&mut one, &two, flags);
    (one, two)
}

/// Starts a cluster that another host may join.
fn bring_up(one: &mut Host, two: &Host, flags: &[&str]) {
    one.up(&flags.iter().map(ToString::to_string).collect::<Vec<_>>());
    one.wait_until_node_is_ready(&one.name);
    // The second trusts the first's authority.
    let copied = std::process::Command::new("cp").arg("-r").args([one.dir.join("pki"), two.dir.clone()]).status();
    assert!(copied.unwrap().success());
}

fn join(one: &Host, two: &mut Host, flags: &[&str]) {
    let server = format!("--server=https://{}:6443", one.address);
    two.up(&flags.iter().map(ToString::to_string).chain([server]).collect::<Vec<_>>());
}

#[test]
fn pods_of_two_nodes_reach_each_other_through_a_tunnel() {
    let _turn = turn();
    let network = Network::new();
    let flags = ["--pod-network-backend=vxlan"];
    let (one, mut two) = two_nodes(&network, &flags);
    join(&one, &mut two, &flags);
    one.wait_until_node_is_ready(&two.name);
    one.kubectl_ok(&["apply", "-f", "-"], &pod("here", Some(&one.name)));
    one.kubectl_ok(&["apply", "-f", "-"], &pod("there", Some(&two.name)));
    let (here, there) = (address(&one, "here"), address(&one, "there"));
    wait_until_pod(&one, "here", &format!("http://{there}:8080/"), true);
    wait_until_pod(&one, "there", &format!("http://{here}:8080/"), true);
    one.wait_for_page(&format!("http://{there}:8080/"), PAGE);
    // It is the tunnel that they take, with packets that fit into it.
    let route = one.run("ip", &["route", "get", &there]).out;
    assert!(route.contains("dev kelson-vxlan"), "{route}");
    let mtu = one.kubectl_ok(&["exec", "here", "--", "cat", "/sys/class/net/eth0/mtu"], "");
    assert_eq!(mtu.trim(), "1450");
    one.kubectl_ok(&["expose", "pod", "there", "--port=80", "--target-port=8080"], "");
    wait_until_pod(&one, "here", "http://there/", true);
    // Who may only ask for names may do so from every node, and reach nothing else of the one where they are answered.
    let names = r#"{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{"name":"names"},
        "spec":{"podSelector":{"matchLabels":{"app":"there"}},"policyTypes":["Egress"],"egress":[{
        "to":[{"namespaceSelector":{},"podSelector":{"matchLabels":{"k8s-app":"kube-dns"}}}],
        "ports":[{"protocol":"UDP","port":53},{"protocol":"TCP","port":53}]}]}}"#;
    let health = format!("http://{}:10256/healthz", one.address);
    let reaches_the_node = || fetched_by(&one, "there", &health).out.contains("currentTime");
    assert!(holds_in_time(reaches_the_node));
    one.kubectl_ok(&["apply", "-f", "-"], names);
    wait_until_pod(&one, "there", &format!("http://{here}:8080/"), false);
    let asked = || one.kubectl(&["exec", "there", "--", "busybox", "nslookup", "there.default.svc.cluster.local"], "");
    let service = one.kubectl_ok(&["get", "service", "there", "-o", "jsonpath={.spec.clusterIP}"], "");
    assert!(holds_in_time(|| asked().out.contains(&service)), "{:?}", asked());
    assert!(!reaches_the_node());
    // A node that leaves is no longer led to.
    two.kill_kelson();
    one.kubectl_ok(&["delete", "node", &two.name], "");
    let gone = || !one.run("ip", &["route"]).out.contains("kelson-vxlan");
    assert!(holds_in_time(gone), "{}", one.run("ip", &["route"]).out);
}

const DUAL_STACK: [&str; 2] =
    ["--cluster-cidr=10.244.0.0/16,fd00:244::/56", "--service-cidr=10.96.0.0/16,fd00:96::/112"];

/// The addresses of a pod that runs, of both families.
fn addresses(host: &Host, pod: &str) -> (String, String) {
    address(host, pod);
    let all = host.kubectl_ok(&["get", "pod", pod, "-o", "jsonpath={.status.podIPs[*].ip}"], "");
    let (v4, v6) = all.split_once(' ').unwrap_or_else(|| panic!("{pod} has {all}"));
    assert!(v4.starts_with("10.244.") && v6.starts_with("fd00:244:"), "{all}");
    (v4.to_owned(), v6.to_owned())
}

/// A Service with the pods of this name behind it.
fn service(name: &str, families: &str) -> String {
    format!(
        r#"{{"apiVersion":"v1","kind":"Service","metadata":{{"name":"{name}-{}"}},"spec":{{"type":"NodePort",{families},
        "selector":{{"app":"{name}"}},"ports":[{{"port":80,"targetPort":8080}}]}}}}"#,
        if families.contains("Require") { "both" } else { "six" }
    )
}

#[test]
fn both_families_lead_from_node_to_node_to_services_names_and_past_policies() {
    let _turn = turn();
    let network = Network::new();
    let (mut one, mut two) = (network.host(1), network.host(2));
    for host in [&mut one, &mut two] {
        pack_image(host);
        host.add_ipv6();
    }
    bring_up(&mut one, &two, &DUAL_STACK);
    join(&one, &mut two, &DUAL_STACK);
    one.wait_until_node_is_ready(&two.name);
    for (name, node) in [("here", &one.name), ("there", &two.name), ("other", &one.name)] {
        one.kubectl_ok(&["apply", "-f", "-"], &pod(name, Some(node)));
    }
    let (v4, v6) = addresses(&one, "there");
    addresses(&one, "other");
    for url in [format!("http://{v4}:8080/"), format!("http://[{v6}]:8080/")] {
        wait_until_pod(&one, "here", &url, true);
    }
    let both = r#""ipFamilyPolicy":"RequireDualStack","ipFamilies":["IPv4","IPv6"]"#;
    let six = r#""ipFamilyPolicy":"SingleStack","ipFamilies":["IPv6"]"#;
    one.kubectl_ok(&["apply", "-f", "-"], &service("there", both));
    one.kubectl_ok(&["apply", "-f", "-"], &service("there", six));
    let of =
        |service: &str, path: &str| one.kubectl_ok(&["get", "service", service, "-o", &format!("jsonpath={path}")], "");
    let ips = of("there-both", "{.spec.clusterIPs[*]}");
    let (service4, service6) = ips.split_once(' ').unwrap();
    let only6 = of("there-six", "{.spec.clusterIPs[*]}");
    assert!(
        service4.starts_with("10.96.") && service6.starts_with("fd00:96::") && only6.starts_with("fd00:96::"),
        "{ips} {only6}"
    );
    for url in [format!("http://{service4}/"), format!("http://[{service6}]/"), format!("http://[{only6}]/")] {
        wait_until_pod(&one, "here", &url, true);
        wait_until_pod(&one, "there", &url, true);
    }
    // From outside, at the node's port of either family, at the node that has the pod and at the one that has not.
    let port = of("there-both", "{.spec.ports[0].nodePort}");
    for (client, node) in [(&one, &two), (&two, &one)] {
        let node6 = node.ipv6.as_deref().unwrap();
        for address in [node.address.clone(), format!("[{node6}]")] {
            client.wait_for_page(&format!("http://{address}:{port}/"), PAGE);
        }
    }
    let slices = ["get", "endpointslices", "-l", "kubernetes.io/service-name=there-both", "-o"];
    let kinds = one.until(&[&slices[..], &["jsonpath={.items[*].addressType}"]].concat(), |kinds| kinds.len() > 4);
    assert!(kinds == "IPv4 IPv6" || kinds == "IPv6 IPv4", "{kinds}");
    let asked = |kind: &str, name: &str| {
        let name = format!("{name}.default.svc.cluster.local");
        one.kubectl(&["exec", "here", "--", "busybox", "nslookup", &format!("-type={kind}"), &name], "").out
    };
    for (kind, name, wanted) in
        [("AAAA", "there-both", service6), ("A", "there-both", service4), ("AAAA", "there-six", &only6)]
    {
        assert!(holds_in_time(|| asked(kind, name).contains(wanted)), "{kind} {name}: {}", asked(kind, name));
    }
    // Policies: by labels, and by networks of one family.
    let policy = |from: &str| {
        format!(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: there}}\n\
             spec: {{podSelector: {{matchLabels: {{app: there}}}}, ingress: [{{from: [{from}]}}]}}\n"
        )
    };
    let (page4, page6) = (format!("http://{v4}:8080/"), format!("http://[{v6}]:8080/"));
    let reach = |name: &str, four: bool, six: bool| {
        wait_until_pod(&one, name, &page4, four);
        wait_until_pod(&one, name, &page6, six);
    };
    one.kubectl_ok(&["apply", "-f", "-"], &policy("{podSelector: {matchLabels: {app: here}}}"));
    reach("other", false, false);
    reach("here", true, true);
    one.kubectl_ok(&["apply", "-f", "-"], &policy("{ipBlock: {cidr: \"fd00:244::/56\"}}"));
    reach("here", false, true);
    reach("other", false, true);
}

#[test]
fn a_cluster_may_have_ipv6_alone() {
    let cluster = OneNode::prepared(|host| {
        host.add_ipv6();
        vec!["--cluster-cidr=fd00:244::/56".to_owned(), "--service-cidr=fd00:96::/112".to_owned()]
    });
    let host = &cluster.host;
    let node6 = host.ipv6.as_deref().unwrap();
    let first = host.kubectl_ok(&["get", "node", &host.name, "-o", "jsonpath={.status.addresses[0].address}"], "");
    assert_eq!(first, node6);
    for name in ["web", "client"] {
        host.kubectl_ok(&["apply", "-f", "-"], &pod(name, None));
    }
    let web = address(host, "web");
    assert!(web.starts_with("fd00:244:"), "{web}");
    assert!(address(host, "client").starts_with("fd00:244:"));
    wait_until_pod(host, "client", &format!("http://[{web}]:8080/"), true);
    host.kubectl_ok(&["apply", "-f", "-"], &service("web", r#""ipFamilyPolicy":"SingleStack""#));
    wait_until_pod(host, "client", "http://web-six.default.svc.cluster.local/", true);
    let port = host.kubectl_ok(&["get", "service", "web-six", "-o", "jsonpath={.spec.ports[0].nodePort}"], "");
    host.wait_for_page(&format!("http://[{node6}]:{port}/"), PAGE);
}

#[test]
fn rules_that_are_flushed_come_back_also_while_the_api_server_is_away() {
    let _turn = turn();
    let network = Network::new();
    let (mut one, mut two) = two_nodes(&network, &[]);
    join(&one, &mut two, &[]);
    one.wait_until_node_is_ready(&two.name);
    one.kubectl_ok(&["apply", "-f", "-"], &hello());
    one.until(&["get", "deployment", "hello", "-o", READY], |n| n == "2");
    let page = format!("http://{}:30080/", two.address);
    two.wait_for_page(&page, PAGE);
    one.kill_kelson();
    assert!(two.run("nft", &["flush", "ruleset"]).ok);
    assert!(!two.fetch(&page).out.contains(PAGE));
    two.wait_for_page(&page, PAGE);
    let masqueraded = || two.run("nft", &["list", "table", "inet", "kelson-pod-network"]).out.contains("masquerade");
    assert!(holds_in_time(masqueraded));
}

#[test]
fn a_node_whose_pods_addresses_are_taken_is_refused_with_an_event() {
    let _turn = turn();
    let network = Network::new();
    let (one, mut two) = two_nodes(&network, &[]);
    let taken = one.kubectl_ok(&["get", "node", &one.name, "-o", "jsonpath={.spec.podCIDR}"], "");
    let node = format!(
        r#"{{"apiVersion":"v1","kind":"Node","metadata":{{"name":"{}"}},"spec":{{"podCIDR":"{taken}","podCIDRs":["{taken}"]}}}}"#,
        two.name
    );
    one.kubectl_ok(&["create", "-f", "-"], &node);
    join(&one, &mut two, &[]);
    let events =
        ["get", "events", "-A", "--field-selector=reason=PodCIDROverlap", "-o", "jsonpath={.items[*].message}"];
    let message = one.until(&events, |message| !message.is_empty());
    let want =
        format!("Pod CIDR {taken} of node {} overlaps with {taken} of node {} and is not used", two.name, one.name);
    assert!(message.contains(&want), "{message}");
    let ready = "jsonpath={.status.conditions[?(@.type=='Ready')].status}";
    assert_ne!(one.kubectl_ok(&["get", "node", &two.name, "-o", ready], ""), "True");
}

/// What there is on a host besides its data directory that a cluster may have written.
fn written(host: &Host) -> Vec<String> {
    let ours = |line: &&str| ["kube-proxy", "kelson", "KUBE-", "CNI-"].iter().any(|mark| line.contains(mark));
    let said = |program: &str, args: &[&str]| host.run(program, args).out;
    let rules = [said("nft", &["list", "tables"]), said("iptables-save", &[]), said("ip6tables-save", &[])].concat();
    let links = said("ip", &["-brief", "link"]);
    let links = links.lines().map(|line| line.split(' ').next().unwrap_or_default());
    let routes = [said("ip", &["route"]), said("ip", &["-6", "route"])].concat();
    rules.lines().filter(ours).chain(links).chain(routes.lines()).map(|line| line.trim().to_owned()).collect()
}

#[test]
fn a_reset_leaves_nothing_of_a_cluster_on_the_host() {
    let mut before = Vec::new();
    let cluster = OneNode::prepared(|host| {
        before = written(host);
        vec!["--pod-network-backend=vxlan".to_owned()]
    });
    let host = &cluster.host;
    let mut open = pod("open", None);
    open = open.replace(r#""containerPort":8080"#, r#""containerPort":8080,"hostPort":8888"#);
    host.kubectl_ok(&["apply", "-f", "-"], &open);
    host.kubectl_ok(&["expose", "pod", "open", "--port=80", "--target-port=8080"], "");
    let policy = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: all}\nspec: {podSelector: {}, ingress: [{}]}\n";
    host.kubectl_ok(&["apply", "-f", "-"], policy);
    address(host, "open");
    host.wait_for_page(&format!("http://{}:8888/", host.address), PAGE);
    let during = || written(host).join("\n");
    for trace in ["ip kube-proxy", "inet kelson-pod-network", "kelson-vxlan", "cni0", "CNI-DN-"] {
        assert!(during().contains(trace), "{trace}: {}", during());
    }
    assert!(holds_in_time(|| during().contains("inet kelson-network-policy")), "{}", during());
    let uid = host.kubectl_ok(&["get", "pod", "open", "-o", "jsonpath={.metadata.uid}"], "");
    let remembered = || {
        let files = std::fs::read_dir("/var/lib/cni/results").into_iter().flatten().flatten();
        files.filter(|file| std::fs::read_to_string(file.path()).is_ok_and(|text| text.contains(&uid))).count()
    };
    assert!(remembered() > 0);
    let reset = host.reset();
    assert!(reset.ok, "{reset:?}");
    assert_eq!((written(host), remembered(), host.dir.exists()), (before, 0, false));
}

/// A kube-proxy of its own beside a cluster without one.
struct Proxy(Child);

impl Proxy {
    fn start(host: &Host, mode: &str) -> Self {
        let log = std::fs::File::create(host.dir.with_extension("proxy.log")).unwrap();
        let kubeconfig = host.dir.join("kubeconfig/kube-proxy.conf");
        let mut command = host.command(env!("CARGO_BIN_EXE_kelson"));
        command.arg("kube-proxy").args([
            format!("--kubeconfig={}", kubeconfig.display()),
            format!("--proxy-mode={mode}"),
            format!("--hostname-override={}", host.name),
            "--cluster-cidr=10.244.0.0/16".to_owned(),
        ]);
        Proxy(command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap())
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn services_answer_in_every_mode_and_a_change_of_mode_leaves_nothing_behind() {
    let cluster = OneNode::start(&["--disable=kube-proxy".to_owned()]);
    let host = &cluster.host;
    let chains = || host.run("iptables-save", &[]).out.matches("KUBE-").count();
    let table = || host.run("nft", &["list", "tables"]).out.contains("kube-proxy");
    let page = format!("http://{}:30080/", host.address);
    {
        let _proxy = Proxy::start(host, "iptables");
        host.kubectl_ok(&["apply", "-f", "-"], &hello());
        host.until(&["get", "deployment", "hello", "-o", READY], |n| n == "2");
        let ip = host.kubectl_ok(&["get", "service", "hello", "-o", "jsonpath={.spec.clusterIP}"], "");
        host.wait_for_page(&format!("http://{ip}/"), PAGE);
        host.wait_for_page(&page, PAGE);
        assert!(chains() > 0 && !table());
        assert_eq!(host.fetch("http://127.0.0.1:10249/proxyMode").out, "iptables");
    }
    // Rules stay when the program ends.
    host.wait_for_page(&page, PAGE);
    {
        let _proxy = Proxy::start(host, "nftables");
        assert!(holds_in_time(|| table() && chains() == 0), "{}", host.run("iptables-save", &[]).out);
        host.wait_for_page(&page, PAGE);
        let health = host.fetch("http://127.0.0.1:10256/healthz").out;
        assert!(health.contains("\"nodeEligible\": true"), "{health}");
        let metrics = host.fetch("http://127.0.0.1:10249/metrics").out;
        assert!(metrics.contains("kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"}"), "{metrics}");
    }
    host.wait_for_page(&page, PAGE);
    let cleaned = host.run(env!("CARGO_BIN_EXE_kelson"), &["kube-proxy", "--cleanup"]);
    assert!(cleaned.ok && chains() == 0 && !table(), "{cleaned:?}");
}
