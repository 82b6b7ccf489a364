//! The gRPC interfaces of node plugins: clients for the kubelet, servers for the one that it offers and for its tests.

fn main() -> std::io::Result<()> {
    let files = ["registration", "device_plugin", "csi", "dra", "dra_v1beta1", "dra_health"];
    let files = files.map(|name| format!("proto/{name}.proto"));
    // What a device plugin answers is kept in a file.
    let kept = "#[derive(serde::Serialize, serde::Deserialize)]";
    tonic_prost_build::configure().type_attribute(".v1beta1", kept).compile_protos(&files, &["proto".to_owned()])
}
