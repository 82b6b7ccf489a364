//! Services, endpoints and names.

use std::net::{IpAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use serde_json::{Value, json};
use testing::netns;
use testing::wait::holds_within;

use super::super::host::holds_in_time;
use super::{Space, checks, hold, is_ready, name_of, pod, runs, template};

#[test]
fn networks_behave() {
    hold(checks![
        the_api_server_is_a_service,
        endpoints_follow_pods_port_by_port,
        one_port_number_serves_both_protocols,
        affinity_is_switched_on_and_off,
        a_service_changes_its_type,
        slices_made_by_hand_are_served,
        endpoints_made_by_hand_are_mirrored,
        a_service_without_pods_has_empty_endpoints,
        host_ports_differ_by_address_and_protocol,
        names_lead_to_services_and_pods,
        a_pod_has_the_names_that_it_asks_for,
        the_api_server_proxies_to_pods_and_services,
        every_method_is_proxied_and_links_lead_back,
        services_are_deleted_by_label,
        networks_of_services_grow_and_their_addresses_are_objects,
    ]);
}

const WEB: &str = "exec busybox httpd -f -p 8080 -h /www";
/// Answers on TCP with the pod's name.
const SAYS_NAME: &str = "while true; do hostname | nc -l -p 8080; done";

/// Answers with a page that says which method it was asked with, and has a link.
const SAYS_METHOD: &str = r#"cat > /tmp/answer <<'END'
#!/bin/sh
read -r method rest
while read -r line && [ ${#line} -gt 1 ]; do :; done
page="<a href=\"/rewriteme\">$method</a>"
printf 'HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: %d\r\nConnection: close\r\n\r\n' ${#page}
[ $method = HEAD ] || printf '%s' "$page"
END
busybox chmod +x /tmp/answer
exec nc -ll -p 8080 -e /tmp/answer"#;

fn service(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec})
}

/// Starts a pod and waits until it is ready.
fn start(space: &Space<'_>, pod: &Value) -> Value {
    space.create(pod);
    space.until(&format!("pod/{}", name_of(pod)), is_ready)
}

fn cluster_ip(space: &Space<'_>, name: &str) -> String {
    space.get(&format!("service/{name}"))["spec"]["clusterIP"].as_str().unwrap().to_owned()
}

/// What a shell in a pod prints.
fn inside(space: &Space<'_>, pod: &str, script: &str) -> String {
    space.kubectl(&["exec", pod, "--", "sh", "-c", script], "").out
}

/// The addresses and ports of a Service's slices, as `address:port`.
fn endpoints(space: &Space<'_>, name: &str) -> Vec<String> {
    let mut all = Vec::new();
    for slice in space.list("endpointslices", &format!("kubernetes.io/service-name={name}")) {
        for endpoint in slice["endpoints"].as_array().into_iter().flatten() {
            for port in slice["ports"].as_array().into_iter().flatten() {
                all.push(format!("{}:{}", endpoint["addresses"][0].as_str().unwrap(), port["port"]));
            }
        }
    }
    all.sort_unstable();
    all
}

#[track_caller]
fn until_endpoints(space: &Space<'_>, name: &str, mut wanted: Vec<String>) {
    wanted.sort_unstable();
    let mut last = Vec::new();
    let done = holds_in_time(|| {
        last = endpoints(space, name);
        last == wanted
    });
    assert!(done, "{name} has {last:?} instead of {wanted:?}");
}

fn the_api_server_is_a_service(space: &Space<'_>) {
    let host = space.host;
    let slices =
        host.kubectl_ok(&["get", "endpointslices", "-l", "kubernetes.io/service-name=kubernetes", "-o", "json"], "");
    let slices: Value = serde_json::from_str(&slices).unwrap();
    assert_eq!(slices["items"][0]["endpoints"][0]["addresses"], json!([host.address]));
    let endpoints =
        host.kubectl_ok(&["get", "endpoints", "kubernetes", "-o", "jsonpath={.subsets[0].addresses[0].ip}"], "");
    assert_eq!(endpoints, host.address);
    assert!(
        space
            .kubectl_ok(&["get", "services", "-A"], "")
            .lines()
            .any(|line| line.starts_with("default ") && line.contains(" kubernetes "))
    );
}

fn endpoints_follow_pods_port_by_port(space: &Space<'_>) {
    let ports =
        json!([{"name": "one", "port": 80, "targetPort": "one"}, {"name": "two", "port": 81, "targetPort": "two"}]);
    space.create(&service("s", json!({"selector": {"app": "s"}, "ports": ports})));
    until_endpoints(space, "s", vec![]);
    let with_port = |name: &str, port_name: &str, port: u16| {
        let mut pod = pod(name, "s", runs("sleep 100000"));
        pod["spec"]["containers"][0]["ports"] = json!([{"name": port_name, "containerPort": port}]);
        pod
    };
    let ip = |pod: Value| pod["status"]["podIP"].as_str().unwrap().to_owned();
    let one = ip(start(space, &with_port("p1", "one", 100)));
    until_endpoints(space, "s", vec![format!("{one}:100")]);
    let two = ip(start(space, &with_port("p2", "two", 101)));
    until_endpoints(space, "s", vec![format!("{one}:100"), format!("{two}:101")]);
    space.kubectl_ok(&["delete", "pod", "p1"], "");
    until_endpoints(space, "s", vec![format!("{two}:101")]);
    space.kubectl_ok(&["delete", "pod", "p2"], "");
    until_endpoints(space, "s", vec![]);
}

fn one_port_number_serves_both_protocols(space: &Space<'_>) {
    const PORT: u16 = 25080;
    let both = json!([{"name": "tcp", "port": 80}, {"name": "udp", "port": 80, "protocol": "UDP"}]);
    space.create(&service("s", json!({"ports": both})));
    // The host itself is behind the Service: what is in the image of the pods knows no UDP.
    let address = space.host.address.clone();
    let ports = json!([{"name": "tcp", "port": PORT}, {"name": "udp", "port": PORT, "protocol": "UDP"}]);
    space.create(&json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "s", "labels": {"kubernetes.io/service-name": "s"}},
        "endpoints": [{"addresses": [address]}], "ports": ports}));
    let ip = cluster_ip(space, "s");
    netns::inside(&space.host.namespace(), || {
        let udp = UdpSocket::bind((address.as_str(), PORT)).unwrap();
        let tcp = TcpListener::bind((address.as_str(), PORT)).unwrap();
        tcp.set_nonblocking(true).unwrap();
        udp.set_nonblocking(true).unwrap();
        // Each time: something new is sent, and everything that arrived is looked at.
        let arrives_by_udp = || {
            let client = UdpSocket::bind("0.0.0.0:0").unwrap();
            // Refused when the Service has no such port.
            let _ = client.send_to(b"hello", (ip.as_str(), 80));
            holds_within(Duration::from_secs(1), || udp.recv_from(&mut [0; 16]).is_ok())
        };
        let arrives_by_tcp = || {
            let to = (ip.parse::<IpAddr>().unwrap(), 80).into();
            TcpStream::connect_timeout(&to, Duration::from_secs(1)).is_ok()
                && holds_within(Duration::from_secs(1), || tcp.accept().is_ok())
        };
        assert!(holds_in_time(arrives_by_udp) && holds_in_time(arrives_by_tcp), "both are served");
        for (left, gone) in [("tcp", "udp"), ("udp", "tcp")] {
            let port = json!([{"name": left, "port": 80, "protocol": left.to_uppercase()}]);
            space.merge("service/s", &json!({"spec": {"ports": port}}));
            let (stays, goes): (&dyn Fn() -> bool, &dyn Fn() -> bool) =
                if left == "tcp" { (&arrives_by_tcp, &arrives_by_udp) } else { (&arrives_by_udp, &arrives_by_tcp) };
            assert!(holds_in_time(|| !goes()), "{gone} is still served");
            assert!(holds_in_time(stays), "{left} is not served");
        }
    });
}

fn affinity_is_switched_on_and_off(space: &Space<'_>) {
    let set = json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": "rs"}, "spec": {"replicas": 3,
        "selector": {"matchLabels": {"app": "rs"}}, "template": template("rs", runs(SAYS_NAME))}});
    space.create(&set);
    space.until("replicaset/rs", |set| set["status"]["readyReplicas"] == 3);
    let spec = json!({"type": "NodePort", "selector": {"app": "rs"}, "sessionAffinity": "ClientIP",
        "ports": [{"port": 80, "targetPort": 8080}]});
    space.create(&service("s", spec));
    start(space, &pod("client", "client", runs("sleep 100000")));
    let made = space.get("service/s");
    let ways = [
        format!("{} 80", made["spec"]["clusterIP"].as_str().unwrap()),
        format!("{} {}", space.host.address, made["spec"]["ports"][0]["nodePort"]),
    ];
    // Twelve answers, and from how many pods they are.
    let answers = |way: &str| {
        let script = format!("for i in 1 2 3 4 5 6 7 8 9 10 11 12; do echo | nc -w 2 {way}; done");
        let said = inside(space, "client", &script);
        let names: Vec<&str> = said.lines().collect();
        (names.len(), names.iter().collect::<std::collections::BTreeSet<_>>().len())
    };
    for way in &ways {
        assert!(holds_in_time(|| answers(way).0 >= 10), "{way} does not answer");
        assert_eq!(answers(way).1, 1, "{way}: one client is led to one pod");
    }
    space.merge("service/s", &json!({"spec": {"sessionAffinity": "None"}}));
    assert!(holds_in_time(|| answers(&ways[0]).1 > 1), "still the same pod");
    space.merge("service/s", &json!({"spec": {"sessionAffinity": "ClientIP"}}));
    assert!(holds_in_time(|| answers(&ways[0]).1 == 1), "still all pods");
}

fn a_service_changes_its_type(space: &Space<'_>) {
    space.create(&service("s", json!({"type": "ExternalName", "externalName": "example.com"})));
    assert_eq!(space.get("service/s")["spec"]["clusterIP"], Value::Null);
    start(space, &pod("p", "s", runs(WEB)));
    let ports = json!([{"port": 80, "targetPort": 8080}]);
    space.merge(
        "service/s",
        &json!({"spec": {"type": "ClusterIP", "externalName": null, "selector": {"app": "s"}, "ports": ports}}),
    );
    space.host.wait_for_page(&format!("http://{}/", cluster_ip(space, "s")), "Hello from Kelson");
    space.merge("service/s", &json!({"spec": {"type": "NodePort"}}));
    let port = space.get("service/s")["spec"]["ports"][0]["nodePort"].clone();
    space.host.wait_for_page(&format!("http://{}:{port}/", space.host.address), "Hello from Kelson");
    space.merge("service/s", &json!({"spec": {"type": "ExternalName", "externalName": "example.com", "clusterIP": null, "clusterIPs": null}}));
    assert_eq!(space.get("service/s")["spec"]["clusterIP"], Value::Null);
}

fn slices_made_by_hand_are_served(space: &Space<'_>) {
    let web = start(space, &pod("web", "web", runs(WEB)));
    let name = start(space, &pod("name", "name", runs(SAYS_NAME)));
    let ports = json!([{"name": "web", "port": 80}, {"name": "name", "port": 81}]);
    space.create(&service("s", json!({"ports": ports})));
    for (pod, port) in [(&web, "web"), (&name, "name")] {
        space.create(&json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": port, "labels": {"kubernetes.io/service-name": "s"}},
            "endpoints": [{"addresses": [pod["status"]["podIP"]]}], "ports": [{"name": port, "port": 8080, "protocol": "TCP"}]}));
    }
    let ip = cluster_ip(space, "s");
    space.host.wait_for_page(&format!("http://{ip}/"), "Hello from Kelson");
    let mut said = String::new();
    let done = holds_in_time(|| {
        said = inside(space, "web", &format!("echo | nc -w 2 {ip} 81"));
        said == "name\n"
    });
    assert!(done, "{said:?}");
}

fn endpoints_made_by_hand_are_mirrored(space: &Space<'_>) {
    space.create(&service("s", json!({"ports": [{"name": "p", "port": 80}]})));
    let made = |ip: &str| {
        json!({"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "s", "labels": {"e2e": "e"}},
            "subsets": [{"addresses": [{"ip": ip}], "ports": [{"name": "p", "port": 80, "protocol": "TCP"}]}]})
    };
    space.create(&made("198.19.200.1"));
    until_endpoints(space, "s", vec!["198.19.200.1:80".to_owned()]);
    space.merge("endpoints/s", &json!({"subsets": made("198.19.200.2")["subsets"]}));
    until_endpoints(space, "s", vec!["198.19.200.2:80".to_owned()]);
    let path = format!("/api/v1/namespaces/{}/endpoints?labelSelector=e2e%3De", space.name);
    space.kubectl_ok(&["delete", "--raw", &path], "");
    space.until_all("endpointslices", "kubernetes.io/service-name=s", <[Value]>::is_empty);
}

fn a_service_without_pods_has_empty_endpoints(space: &Space<'_>) {
    space.create(&service("s", json!({"selector": {"app": "nobody"}, "ports": [{"port": 80}]})));
    space.until("endpoints/s", |endpoints| !endpoints.is_null() && endpoints["subsets"].is_null());
    space.until_all("endpointslices", "kubernetes.io/service-name=s", |slices| slices.len() == 1);
    space.kubectl_ok(&["delete", "service", "s"], "");
    space.until("endpoints/s", Value::is_null);
    space.until_all("endpointslices", "kubernetes.io/service-name=s", <[Value]>::is_empty);
}

fn host_ports_differ_by_address_and_protocol(space: &Space<'_>) {
    let with = |name: &str, ip: &str, protocol: &str| {
        let mut pod = pod(name, name, runs(WEB));
        pod["spec"]["containers"][0]["ports"] =
            json!([{"containerPort": 8080, "hostPort": 54323, "hostIP": ip, "protocol": protocol}]);
        pod
    };
    start(space, &with("loopback", "127.0.0.1", "TCP"));
    start(space, &with("address", &space.host.address, "TCP"));
    start(space, &with("udp", &space.host.address, "UDP"));
    for address in ["127.0.0.1", &space.host.address] {
        space.host.wait_for_page(&format!("http://{address}:54323/"), "Hello from Kelson");
    }
    // Also when the caller takes another of the node's addresses for itself.
    let how = ["--silent", "--max-time", "5", "--interface", &space.host.address, "http://127.0.0.1:54323/"];
    let said = space.host.run("curl", &how);
    assert!(said.out.contains("Hello from Kelson"), "{said:?}");
}

fn names_lead_to_services_and_pods(space: &Space<'_>) {
    space.create(&service(
        "headless",
        json!({"clusterIP": "None", "selector": {"app": "p"}, "ports": [{"name": "http", "port": 8080}]}),
    ));
    space.create(&service(
        "web",
        json!({"selector": {"app": "p"}, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]}),
    ));
    let mut named = pod("p", "p", runs(WEB));
    named["spec"]["hostname"] = "host".into();
    named["spec"]["subdomain"] = "headless".into();
    let ip = start(space, &named)["status"]["podIP"].as_str().unwrap().to_owned();
    let service = cluster_ip(space, "web");
    let domain = format!("{}.svc.cluster.local", space.name);
    let reverse = service.split('.').rev().chain(["in-addr.arpa"]).collect::<Vec<_>>().join(".");
    let ask = |kind: &str, name: &str| inside(space, "p", &format!("nslookup -type={kind} {name} 2>&1"));
    for (kind, name, wanted) in [
        ("A", "kubernetes.default.svc.cluster.local".to_owned(), "10.96.0.1".to_owned()),
        ("A", format!("web.{domain}"), service.clone()),
        ("A", format!("headless.{domain}"), ip.clone()),
        ("A", format!("host.headless.{domain}"), ip.clone()),
        ("A", format!("{}.{}.pod.cluster.local", ip.replace('.', "-"), space.name), ip.clone()),
        ("SRV", format!("_http._tcp.web.{domain}"), format!("web.{domain}")),
        ("SRV", format!("_http._tcp.headless.{domain}"), format!("host.headless.{domain}")),
        ("PTR", reverse, format!("web.{domain}")),
    ] {
        let mut said = String::new();
        let done = holds_in_time(|| {
            said = ask(kind, &name);
            // The server's own address is in the first two lines.
            said.lines().skip(2).any(|line| line.contains(&wanted))
        });
        assert!(done, "{kind} {name} should lead to {wanted}: {said}");
    }
    // Names in part, by the search path.
    for name in ["web", &format!("web.{}", space.name), &format!("web.{}.svc", space.name)] {
        assert!(inside(space, "p", &format!("wget -qO- http://{name}/")).contains("Hello from Kelson"), "{name}");
    }
    assert_eq!(inside(space, "p", "hostname"), "host\n");
    assert!(inside(space, "p", "cat /etc/hosts").contains(&format!("{ip}\thost.headless.{domain}\thost")));
}

fn a_pod_has_the_names_that_it_asks_for(space: &Space<'_>) {
    let mut own = pod("p", "p", runs("sleep 100000"));
    own["spec"]["dnsPolicy"] = "None".into();
    own["spec"]["dnsConfig"] = json!({"nameservers": ["198.19.200.9"], "searches": ["resolv.conf.local"],
        "options": [{"name": "ndots", "value": "2"}]});
    own["spec"]["hostAliases"] = json!([{"ip": "198.19.200.8", "hostnames": ["foo.local", "bar.local"]}]);
    start(space, &own);
    let said = inside(space, "p", "cat /etc/resolv.conf");
    for line in ["nameserver 198.19.200.9", "search resolv.conf.local", "options ndots:2"] {
        assert!(said.lines().any(|has| has == line), "{line}: {said}");
    }
    assert!(inside(space, "p", "cat /etc/hosts").contains("198.19.200.8\tfoo.local\tbar.local"));
}

fn the_api_server_proxies_to_pods_and_services(space: &Space<'_>) {
    start(space, &pod("p", "p", runs(WEB)));
    space.create(&service(
        "s",
        json!({"selector": {"app": "p"}, "ports": [{"name": "web", "port": 80, "targetPort": 8080}]}),
    ));
    until_endpoints(space, "s", vec![format!("{}:8080", space.get("pod/p")["status"]["podIP"].as_str().unwrap())]);
    for path in [
        "pods/p:8080/proxy/",
        "pods/http:p:8080/proxy/index.html",
        "services/s:web/proxy/",
        "services/http:s:80/proxy/index.html",
    ] {
        let said = space.kubectl_ok(&["get", "--raw", &format!("/api/v1/namespaces/{}/{path}", space.name)], "");
        assert!(said.contains("Hello from Kelson"), "{path}: {said}");
    }
}

fn every_method_is_proxied_and_links_lead_back(space: &Space<'_>) {
    start(space, &pod("p", "p", runs(SAYS_METHOD)));
    space.create(&service("s", json!({"selector": {"app": "p"}, "ports": [{"port": 80, "targetPort": 8080}]})));
    until_endpoints(space, "s", vec![format!("{}:8080", space.get("pod/p")["status"]["podIP"].as_str().unwrap())]);
    let pki = |file: &str| space.host.dir.join("pki").join(file).display().to_string();
    let (cert, key, ca) = (pki("admin.crt"), pki("admin.key"), pki("ca.crt"));
    let ask = |method: &str, path: &str| {
        let url = format!("https://{}:6443/api/v1/namespaces/{}/{path}", space.host.address, space.name);
        let how = if method == "HEAD" { vec!["--head"] } else { vec!["--request", method] };
        let fixed = [
            "--silent",
            "--max-time",
            "5",
            "--write-out",
            " %{http_code} %{redirect_url}",
            "--cert",
            &cert,
            "--key",
            &key,
            "--cacert",
            &ca,
            &url,
        ];
        space.host.run("curl", &[&how[..], &fixed].concat()).out
    };
    for proxied in ["pods/p:8080/proxy", "services/s:80/proxy"] {
        let link = format!("/api/v1/namespaces/{}/{proxied}/rewriteme", space.name);
        for method in ["DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"] {
            let path = format!("{proxied}/some/path/with/{method}");
            let want = format!("<a href=\"{link}\">{method}</a> 200 ");
            let mut said = String::new();
            let done = holds_in_time(|| {
                said = ask(method, &path);
                if method == "HEAD" { said.contains(" 200 ") } else { said == want }
            });
            assert!(done, "{method} {path}: {said}");
        }
        // Only what may have relative links is sent to where they are right.
        for method in ["GET", "HEAD"] {
            let said = ask(method, &format!("{proxied}?method={method}"));
            assert!(said.contains(" 301 ") && said.ends_with(&format!("/{proxied}/?method={method}")), "{said}");
        }
        let said = || ask("POST", &format!("{proxied}?method=POST"));
        assert!(holds_in_time(|| said().ends_with(" 200 ")), "{}", said());
    }
}

fn services_are_deleted_by_label(space: &Space<'_>) {
    for (name, label) in [("one", "yes"), ("two", "yes"), ("three", "no")] {
        let mut service = service(name, json!({"ports": [{"port": 80}]}));
        service["metadata"]["labels"] = json!({"e2e": label});
        space.create(&service);
    }
    let path = format!("/api/v1/namespaces/{}/services?labelSelector=e2e%3Dyes", space.name);
    space.kubectl_ok(&["delete", "--raw", &path], "");
    space.until_all("services", "e2e", |left| left.len() == 1 && name_of(&left[0]) == "three");
}

fn networks_of_services_grow_and_their_addresses_are_objects(space: &Space<'_>) {
    let host = space.host;
    let network = |name: &str, cidr: &str| {
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": name, "labels": {"e2e": "cidr"}},
            "spec": {"cidrs": [cidr]}})
    };
    space.create(&network("more", "10.200.0.0/24"));
    space.until("servicecidr/more", |cidr| super::condition(cidr, "Ready") == Some("True"));
    start(space, &pod("p", "s", runs(WEB)));
    let ports = json!([{"port": 80, "targetPort": 8080}]);
    space.create(&service("s", json!({"clusterIP": "10.200.0.7", "selector": {"app": "s"}, "ports": ports})));
    host.wait_for_page("http://10.200.0.7/", "Hello from Kelson");
    let address = space.get("ipaddress/10.200.0.7");
    let parent = &address["spec"]["parentRef"];
    assert_eq!(
        (&parent["resource"], &parent["namespace"], &parent["name"]),
        (&json!("services"), &json!(space.name), &json!("s"))
    );
    // A network whose addresses are used is not gone before they are.
    host.kubectl_ok(&["delete", "servicecidr", "more", "--wait=false"], "");
    space.until("servicecidr/more", |cidr| super::condition(cidr, "Ready") == Some("False"));
    space.kubectl_ok(&["delete", "service", "s"], "");
    space.until("servicecidr/more", Value::is_null);
    space.until("ipaddress/10.200.0.7", Value::is_null);
    // Addresses that somebody else holds.
    for last in ["2", "3"] {
        space.create(&json!({"apiVersion": "networking.k8s.io/v1", "kind": "IPAddress",
            "metadata": {"name": format!("192.168.200.{last}"), "labels": {"e2e": "address"}},
            "spec": {"parentRef": {"group": "", "resource": "services", "namespace": "bar", "name": "foo"}}}));
    }
    space.merge("ipaddress/192.168.200.2", &json!({"metadata": {"annotations": {"patched": "yes"}}}));
    assert_eq!(space.get("ipaddress/192.168.200.2")["metadata"]["annotations"]["patched"], "yes");
    host.kubectl_ok(&["delete", "--raw", "/apis/networking.k8s.io/v1/ipaddresses?labelSelector=e2e%3Daddress"], "");
    space.until_all("ipaddresses", "e2e=address", <[Value]>::is_empty);
}
