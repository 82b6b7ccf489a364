//! ImageLocality: nodes that have the pod's images are better.

use crate::cluster::{Cluster, NodeIdx, NodeRef};
use crate::framework::{MAX_NODE_SCORE, Plugin, PreScore, Reuse, Score, Signature};
use crate::pod::PodInfo;

pub(super) struct ImageLocality;

/// Images of less are not worth it; of more than the upper bound for each container the score is full. In bytes.
const LEAST: i64 = 23 * 1024 * 1024;
const MOST_PER_CONTAINER: i64 = 1000 * 1024 * 1024;

impl Plugin for ImageLocality {
    const NAME: &'static str = "ImageLocality";
}

/// The images that a pod needs, as nodes name them, one for each container.
pub(super) struct PodImages(Vec<String>);

fn images_of(pod: &PodInfo) -> PodImages {
    let Some(spec) = pod.spec() else { return PodImages(Vec::new()) };
    let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
    let of_containers = containers.map(|container| container.image.as_deref().unwrap_or_default());
    let of_volumes = spec.volumes.iter().flatten().filter_map(|volume| volume.image.as_ref()?.reference.as_deref());
    PodImages(of_containers.chain(of_volumes).map(full_name).collect())
}

/// With the tag that is meant when there is none.
fn full_name(image: &str) -> String {
    if image.rfind(':') <= image.rfind('/') { format!("{image}:latest") } else { image.to_owned() }
}

impl Score for ImageLocality {
    type State = PodImages;

    fn sign(&self, pod: &PodInfo, signature: &mut Signature) -> Reuse {
        signature.add(&images_of(pod).0);
        Reuse::PerNode
    }

    fn prescore(&self, pod: &PodInfo, _: &mut Cluster, _: &[NodeIdx]) -> PreScore<PodImages> {
        PreScore::Run(images_of(pod))
    }

    /// The bytes that need not be fetched, each image's weighed by the share of nodes that have it, so that pods do not
    /// crowd the one node that happens to have an image.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        reason = "the rule is stated in floating point, over sizes far below 2^53"
    )]
    fn score(&self, PodImages(images): &PodImages, _: &PodInfo, node: NodeRef<'_>) -> i64 {
        let nodes = node.nodes();
        let scaled = images.iter().filter_map(|image| {
            let state = nodes.images().on_node(node.idx(), image)?;
            let spread = f64::from(state.nodes) / nodes.len() as f64;
            Some((state.size as f64 * spread) as i64)
        });
        let most = MOST_PER_CONTAINER * i64::try_from(images.len()).unwrap_or(i64::MAX / MOST_PER_CONTAINER);
        let bytes = scaled.sum::<i64>().clamp(LEAST, most.max(LEAST));
        if most <= LEAST { 0 } else { MAX_NODE_SCORE * (bytes - LEAST) / (most - LEAST) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_without_a_tag_means_latest() {
        for (image, want) in [
            ("nginx", "nginx:latest"),
            ("nginx:1", "nginx:1"),
            ("host:5000/nginx", "host:5000/nginx:latest"),
            ("host:5000/nginx:1", "host:5000/nginx:1"),
            ("nginx@sha256:abc", "nginx@sha256:abc"),
        ] {
            assert_eq!(full_name(image), want);
        }
    }
}
