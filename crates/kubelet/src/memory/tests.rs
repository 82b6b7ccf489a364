use super::*;
use crate::numa::Node;

const GIB: u64 = 1 << 30;

/// Two nodes of 4 GiB each, 1 GiB of the first reserved.
fn manager(root: &Path) -> Result<Memory, String> {
    let node = || Node { memory: 4 * GIB, huge_pages: [(2 << 20, GIB)].into(), ..Node::default() };
    let nodes: Nodes = [(0, node()), (1, node())].into();
    let policy = MemoryPolicy { is_static: true, reserved: [(0, [("memory".to_owned(), GIB)].into())].into() };
    let reserved = Amounts::from([("memory".to_owned(), i64::try_from(GIB).unwrap() * 1000)]);
    Memory::new(&policy, &nodes, &reserved, root)
}

fn pod(uid: &str, init: &[&str], containers: &[&str]) -> Pod {
    let make = |prefix: &str, sizes: &[&str]| -> serde_json::Value {
        let one = |(i, size): (usize, &&str)| {
            let amounts = serde_json::json!({ "cpu": "1", "memory": size });
            serde_json::json!({ "name": format!("{prefix}{i}"),
                "resources": { "requests": amounts, "limits": amounts } })
        };
        sizes.iter().enumerate().map(one).collect()
    };
    let spec = serde_json::json!({ "initContainers": make("i", init), "containers": make("c", containers) });
    serde_json::from_value(serde_json::json!({ "metadata": { "uid": uid }, "spec": spec })).unwrap()
}

fn give(memory: &Memory, pod: &Pod) -> Result<Vec<String>, String> {
    let any = Hint { mask: None, preferred: false };
    let all = || plan::init_containers(pod).iter().chain(plan::containers(pod));
    all().try_for_each(|c| memory.allocate(pod, c, any))?;
    Ok(all().map(|c| memory.nodes_of(pod, c)).collect())
}

fn shown(hints: &[Hints]) -> String {
    let one = |h: &Hint| {
        let nodes: String = h.mask.unwrap().nodes().map(|n| n.to_string()).collect();
        nodes + if h.preferred { "*" } else { "" }
    };
    hints.iter().flatten().map(|l| l.iter().map(one).collect::<Vec<_>>().join(" ")).collect::<Vec<_>>().join("; ")
}

#[test]
fn memory_comes_from_as_few_nodes_as_have_it() {
    let dir = tempfile::tempdir().unwrap();
    let memory = manager(dir.path()).unwrap();
    let wishes = |pod: &Pod| shown(&memory.wishes(pod, plan::containers(pod).first()));
    // 2 GiB of the first node and 3 GiB of the second can be given.
    assert_eq!(wishes(&pod("a", &[], &["1Gi"])), "0* 1* 01");
    assert_eq!(wishes(&pod("a", &[], &["3Gi"])), "1* 01");
    assert_eq!(wishes(&pod("a", &[], &["4Gi"])), "01*");
    assert_eq!(wishes(&pod("a", &[], &["6Gi"])), "");
    assert_eq!(give(&memory, &pod("a", &[], &["2Gi"])), Ok(vec!["0".to_owned()]));
    assert_eq!(wishes(&pod("b", &[], &["1Gi"])), "1*");
    assert_eq!(wishes(&pod("a", &[], &["2Gi"])), "0*", "what it has already");
    // A node that serves a container alone serves none together with others.
    assert_eq!(wishes(&pod("b", &[], &["4Gi"])), "");
    let none = "[memorymanager] failed to get the default NUMA affinity, no NUMA nodes with enough memory is available";
    assert_eq!(give(&memory, &pod("b", &[], &["4Gi"])), Err(none.to_owned()));
    memory.keep_only(|uid| uid != "a");
    assert_eq!(give(&memory, &pod("b", &[], &["4Gi"])), Ok(vec!["0-1".to_owned()]));
    assert_eq!(wishes(&pod("c", &[], &["500Mi"])), "01");
}

#[test]
fn init_containers_leave_their_memory_to_the_others_of_their_pod() {
    let dir = tempfile::tempdir().unwrap();
    let memory = manager(dir.path()).unwrap();
    assert_eq!(give(&memory, &pod("a", &["2Gi"], &["1Gi", "1Gi"])), Ok(vec!["0".to_owned(); 3]));
    assert_eq!(shown(&memory.wishes(&pod("b", &[], &["1Gi"]), None)), "1*");
    memory.keep_only(|_| false);
    assert_eq!(shown(&memory.wishes(&pod("b", &["3Gi"], &["1Gi"]), None)), "1* 01");
}

#[test]
fn the_next_kubelet_knows_who_has_what_unless_the_machine_is_another() {
    let dir = tempfile::tempdir().unwrap();
    give(&manager(dir.path()).unwrap(), &pod("a", &["1Gi"], &["2Gi"])).unwrap();
    let next = manager(dir.path()).unwrap();
    assert_eq!(next.nodes_of(&pod("a", &[], &[]), &plan::containers(&pod("a", &[], &["2Gi"]))[0]), "0");
    assert_eq!(shown(&next.wishes(&pod("b", &[], &["1Gi"]), None)), "1*");
    let file = dir.path().join(FILE);
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace("\"size\":2", "\"size\":1")).unwrap();
    assert!(manager(dir.path()).is_err_and(|e| e.contains("checkpoint is corrupted")));
    let mut other: State = serde_json::from_str(&text).unwrap();
    other.machine_state = machine_of(&MemoryPolicy::default(), &[(0, Node::default())].into());
    checkpoint::write(&file, other);
    assert!(manager(dir.path()).is_err_and(|e| e.contains("machine state is different")));
}

#[test]
fn the_file_has_the_sum_that_upstream_gives_it() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("state");
    let text = r#"{"policyName":"static","machineState":{"0":{"numberOfAssignments":0,"memoryMap":{"memory":{"total":2048,
        "systemReserved":512,"allocatable":1536,"reserved":512,"free":1024}},"cells":[]}},
        "entries":{"pod":{"container1":[{"numaAffinity":[0],"type":"memory","size":512}]}},"checksum":4215593881}"#;
    std::fs::write(&file, text).unwrap();
    let read = checkpoint::read::<State>(&file, "memory manager").unwrap().unwrap();
    assert_eq!(read.all_blocks().count(), 1);
}

#[test]
fn what_is_reserved_must_be_what_the_node_keeps_from_pods() {
    let policy =
        |bytes: u64| MemoryPolicy { is_static: true, reserved: [(0, [("memory".to_owned(), bytes)].into())].into() };
    let reserved = Amounts::from([("memory".to_owned(), 5000)]);
    assert_eq!(check_reserved(&policy(5), &reserved), Ok(()));
    assert!(check_reserved(&policy(4), &reserved).unwrap_err().contains("\"4\" of type \"memory\" is not equal"));
    assert!(check_reserved(&policy(0), &reserved).unwrap_err().contains("should specify"));
}
