//! The gRPC interfaces of node plugins: clients for the kubelet, servers for the one that it offers and for its tests.

fn main() -> std::io::Result<()> {
    let files = ["proto/registration.proto", "proto/device_plugin.proto", "proto/csi.proto"];
    // What a device plugin answers is kept in a file.
    let kept = "#[derive(serde::Serialize, serde::Deserialize)]";
    tonic_prost_build::configure().type_attribute(".v1beta1", kept).compile_protos(&files, &["proto"])
}
