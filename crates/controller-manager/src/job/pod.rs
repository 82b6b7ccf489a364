//! The pods of a Job.

use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{Container, EnvVar, EnvVarSource, ObjectFieldSelector, Pod, PodTemplateSpec},
};

use super::plan::{FINALIZER, INDEX, INDEX_FAILURES, NewPod};
use crate::pod_control::pod_of;

pub(super) fn new_pod(job: &Job, new: &NewPod) -> Pod {
    let default = PodTemplateSpec::default();
    let template = job.spec.as_ref().map_or(&default, |spec| &spec.template);
    let mut pod = pod_of(job, template);
    pod.metadata.finalizers.get_or_insert_default().push(FINALIZER.to_owned());
    let Some(index) = new.index else { return pod };
    let name = job.metadata.name.as_deref().unwrap_or_default();
    let annotations = pod.metadata.annotations.get_or_insert_default();
    annotations.insert(INDEX.to_owned(), index.to_string());
    if let Some(failures) = new.failures {
        annotations.insert(INDEX_FAILURES.to_owned(), failures.to_string());
    }
    pod.metadata.labels.get_or_insert_default().insert(INDEX.to_owned(), index.to_string());
    pod.metadata.generate_name = Some(format!("{name}-{index}-"));
    let spec = pod.spec.get_or_insert_default();
    spec.hostname = Some(format!("{name}-{index}"));
    for container in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
        tell_index(container);
    }
    pod
}

/// The program finds its index in its environment, unless it set the variable itself.
fn tell_index(container: &mut Container) {
    let env = container.env.get_or_insert_default();
    if env.iter().any(|variable| variable.name == "JOB_COMPLETION_INDEX") {
        return;
    }
    let field =
        ObjectFieldSelector { field_path: format!("metadata.labels['{INDEX}']"), ..ObjectFieldSelector::default() };
    env.push(EnvVar {
        name: "JOB_COMPLETION_INDEX".to_owned(),
        value_from: Some(EnvVarSource { field_ref: Some(field), ..EnvVarSource::default() }),
        value: None,
    });
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::{batch::v1::JobSpec, core::v1::PodSpec};
    use kube::core::ObjectMeta;

    use super::*;

    #[test]
    fn an_indexed_pod_knows_its_index() {
        let job = Job {
            metadata: ObjectMeta { name: Some("work".into()), ..ObjectMeta::default() },
            spec: Some(JobSpec {
                template: PodTemplateSpec {
                    spec: Some(PodSpec { containers: vec![Container::default()], ..PodSpec::default() }),
                    metadata: None,
                },
                ..JobSpec::default()
            }),
            status: None,
        };
        let pod = new_pod(&job, &NewPod { index: Some(3), failures: Some(1) });
        assert_eq!(pod.metadata.generate_name.as_deref(), Some("work-3-"));
        assert_eq!(pod.metadata.annotations.as_ref().unwrap()[INDEX_FAILURES], "1");
        let spec = pod.spec.unwrap();
        assert_eq!(spec.hostname.as_deref(), Some("work-3"));
        assert_eq!(spec.containers[0].env.as_ref().unwrap()[0].name, "JOB_COMPLETION_INDEX");
        let plain = new_pod(&job, &NewPod { index: None, failures: None });
        assert_eq!(plain.metadata.generate_name.as_deref(), Some("work-"));
        assert_eq!(plain.metadata.finalizers, Some(vec![FINALIZER.to_owned()]));
    }
}
