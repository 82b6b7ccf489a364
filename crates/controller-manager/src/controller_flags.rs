//! The flags of single controllers, and those that are taken for the sake of command lines that have them.

use std::{path::PathBuf, time::Duration};

use clap::{ArgAction, Args};
use component_base::flags::go_duration;

use crate::AutoscalerConfig;

#[derive(Debug, Clone, Args)]
pub struct ControllerFlags {
    #[arg(long, default_value_t = 5)]
    pub concurrent_cron_job_syncs: usize,
    #[arg(long, default_value_t = 5)]
    pub concurrent_horizontal_pod_autoscaler_syncs: usize,
    #[arg(long, default_value_t = 5)]
    pub concurrent_resource_quota_syncs: usize,
    #[arg(long, default_value_t = 5)]
    pub concurrent_ephemeralvolume_syncs: usize,
    #[arg(long, default_value_t = 5)]
    pub concurrent_validating_admission_policy_status_syncs: usize,
    #[arg(long, default_value_t = 50)]
    pub concurrent_resource_claim_syncs: usize,
    #[arg(long, default_value_t = 10)]
    pub concurrent_device_taint_eviction_syncs: usize,
    #[arg(long, default_value_t = 5)]
    pub mirroring_concurrent_service_endpoint_syncs: usize,
    #[arg(long, default_value_t = 1000)]
    pub mirroring_max_endpoints_per_subset: usize,

    #[arg(long, default_value = "15s", value_parser = go_duration)]
    pub horizontal_pod_autoscaler_sync_period: Duration,
    #[arg(long, default_value = "5m0s", value_parser = go_duration)]
    pub horizontal_pod_autoscaler_downscale_stabilization: Duration,
    #[arg(long, default_value_t = 0.1)]
    pub horizontal_pod_autoscaler_tolerance: f64,
    #[arg(long, default_value = "5m0s", value_parser = go_duration)]
    pub horizontal_pod_autoscaler_cpu_initialization_period: Duration,
    #[arg(long, default_value = "30s", value_parser = go_duration)]
    pub horizontal_pod_autoscaler_initial_readiness_delay: Duration,
    #[arg(long, default_value = "5m0s", value_parser = go_duration)]
    pub resource_quota_sync_period: Duration,
    #[arg(long, default_value = "15s", value_parser = go_duration)]
    pub pvclaimbinder_sync_period: Duration,
    #[arg(long, default_value = "1m0s", value_parser = go_duration)]
    pub attach_detach_reconcile_sync_period: Duration,
    #[arg(long, default_value_t = false, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub disable_attach_detach_reconcile_sync: bool,
    #[arg(long, default_value_t = false, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub disable_force_detach_on_timeout: bool,
    #[arg(long, default_value_t = true, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub enable_dynamic_provisioning: bool,
    #[arg(long, default_value_t = false, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub enable_hostpath_provisioner: bool,
    /// How long a token has to be unused before it goes.
    #[arg(long, default_value = "8760h0m0s", value_parser = go_duration)]
    pub legacy_service_account_token_clean_up_period: Duration,

    // What follows changes nothing here: there is no such provider, plugin or batching, or it is the only behaviour.
    #[arg(long, default_value = "0s", value_parser = go_duration)]
    pub endpoint_updates_batch_period: Duration,
    #[arg(long, default_value = "0s", value_parser = go_duration)]
    pub endpointslice_updates_batch_period: Duration,
    #[arg(long, default_value = "0s", value_parser = go_duration)]
    pub mirroring_endpointslice_updates_batch_period: Duration,
    #[arg(long, default_value = "5m0s", value_parser = go_duration)]
    pub namespace_sync_period: Duration,
    #[arg(long, default_value_t = 1)]
    pub concurrent_service_syncs: usize,
    #[arg(long)]
    pub cloud_provider: Option<String>,
    #[arg(long)]
    pub cloud_config: Option<PathBuf>,
    #[arg(long)]
    pub external_cloud_volume_plugin: Option<String>,
    #[arg(long, default_value_t = true, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub configure_cloud_routes: bool,
    #[arg(long, default_value = "10s", value_parser = go_duration)]
    pub route_reconciliation_period: Duration,
    #[arg(long)]
    pub flex_volume_plugin_dir: Option<PathBuf>,
    #[arg(long)]
    pub pv_recycler_pod_template_filepath_hostpath: Option<PathBuf>,
    #[arg(long)]
    pub pv_recycler_pod_template_filepath_nfs: Option<PathBuf>,
    #[arg(long, default_value_t = 60)]
    pub pv_recycler_minimum_timeout_hostpath: i32,
    #[arg(long, default_value_t = 300)]
    pub pv_recycler_minimum_timeout_nfs: i32,
    #[arg(long, default_value_t = 30)]
    pub pv_recycler_increment_timeout_nfs: i32,
    #[arg(long, default_value_t = 30)]
    pub pv_recycler_timeout_increment_hostpath: i32,
    #[arg(long, default_value_t = false, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub enable_leader_migration: bool,
    #[arg(long)]
    pub leader_migration_config: Option<PathBuf>,
    #[arg(long, default_value_t = true, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub profiling: bool,
    #[arg(long, default_value_t = false, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub contention_profiling: bool,
    #[arg(long, default_value_t = 0)]
    pub http2_max_streams_per_connection: u32,
    #[arg(long, default_value_t = false, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub permit_address_sharing: bool,
    #[arg(long, default_value_t = false, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub permit_port_sharing: bool,
    #[arg(long)]
    pub show_hidden_metrics_for_version: Option<String>,
    #[arg(long, value_delimiter = ',')]
    pub disabled_metrics: Vec<String>,
    #[arg(long, default_value = "text")]
    pub logging_format: String,
    #[arg(long)]
    pub vmodule: Option<String>,
    #[arg(long, default_value = "5s", value_parser = go_duration)]
    pub log_flush_frequency: Duration,
}

impl ControllerFlags {
    pub(crate) fn autoscaler(&self) -> AutoscalerConfig {
        AutoscalerConfig {
            sync_period: self.horizontal_pod_autoscaler_sync_period,
            downscale_stabilization: self.horizontal_pod_autoscaler_downscale_stabilization,
            tolerance: self.horizontal_pod_autoscaler_tolerance,
            cpu_initialization_period: self.horizontal_pod_autoscaler_cpu_initialization_period,
            initial_readiness_delay: self.horizontal_pod_autoscaler_initial_readiness_delay,
        }
    }
}
