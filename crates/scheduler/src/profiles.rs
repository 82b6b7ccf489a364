//! The profiles of a scheduler: one program that pods can see as several schedulers.

use std::sync::Arc;

use crate::config::ProfileConfig;
use crate::framework::erased::AnyQueueSort;
use crate::framework::{ClusterEvent, PluginContext, Profile, Registry};
use crate::pod::PodInfo;

pub(crate) struct Profiles {
    list: Vec<Profile>,
    /// All profiles share one queue, so its order is the same for all.
    pub(crate) queue_sort: Arc<dyn AnyQueueSort>,
}

impl Profiles {
    /// `Err` holds everything that is wrong with the configuration.
    pub(crate) fn build(
        configs: &[ProfileConfig],
        registry: &Registry,
        context: &PluginContext,
    ) -> Result<Self, Vec<String>> {
        let (mut list, mut mistakes) = (Vec::new(), Vec::new());
        for config in configs {
            match Profile::build(config, registry, context) {
                Ok(profile) => list.push(profile),
                Err(wrong) => {
                    mistakes.extend(wrong.into_iter().map(|why| format!("profile {:?}: {why}", config.scheduler_name)));
                }
            }
        }
        let Some(queue_sort) = list.first().map(|profile| profile.queue_sort.clone()) else {
            if mistakes.is_empty() {
                mistakes.push("at least one profile is required".to_owned());
            }
            return Err(mistakes);
        };
        if list.iter().any(|profile| profile.queue_sort.name() != queue_sort.name()) {
            mistakes.push("different queue sort plugins in profiles".to_owned());
        }
        if mistakes.is_empty() { Ok(Self { list, queue_sort }) } else { Err(mistakes) }
    }

    /// The profile that the pod asks for, if it is one of ours.
    pub(crate) fn of(&self, pod: &PodInfo) -> Option<&Profile> {
        self.find(pod.scheduler_name()).map(|(_, profile)| profile)
    }

    pub(crate) fn find(&self, scheduler_name: &str) -> Option<(usize, &Profile)> {
        self.list.iter().enumerate().find(|(_, profile)| profile.scheduler_name == scheduler_name)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Profile> {
        self.list.iter()
    }

    /// Whether a pod that the plugin turned down may be helped by such an event.
    pub(crate) fn may_help(&self, plugin: &str, event: ClusterEvent) -> bool {
        let mut plugins = self.list.iter().filter_map(|profile| profile.plugins.get(plugin)).peekable();
        // Who is no plugin says nothing of what may help.
        plugins.peek().is_none()
            || plugins.any(|plugin| {
                let events = plugin.requeue_on();
                events.is_empty() || events.iter().any(|own| own.meets(event))
            })
    }
}
