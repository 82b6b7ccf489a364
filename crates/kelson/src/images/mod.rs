//! Container images without a registry: packing a directory as an OCI archive, and importing archives into containerd.

mod archive;
mod import;

pub(crate) use archive::{Image, pack};
pub(crate) use import::{import_archive, import_directory, import_file};

/// The image of the program that holds a pod's namespaces, built into this binary.
pub(crate) const PAUSE_IMAGE: &str = "registry.k8s.io/pause:3.10";

const PAUSE_PROGRAM: &[u8] = include_bytes!(env!("KELSON_PAUSE"));

/// The pause image as an OCI archive.
pub(crate) fn pause_archive() -> anyhow::Result<Vec<u8>> {
    let mut layer = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(PAUSE_PROGRAM.len() as u64);
    header.set_mode(0o755);
    layer.append_data(&mut header, "pause", PAUSE_PROGRAM)?;
    let image = Image {
        names: vec![PAUSE_IMAGE.to_owned()],
        entrypoint: vec!["/pause".to_owned()],
        user: "65535:65535".to_owned(),
        ..Image::default()
    };
    pack(&image, &layer.into_inner()?)
}
