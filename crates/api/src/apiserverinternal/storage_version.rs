//! StorageVersion.

use apimachinery::Value;

use crate::strategy::{Cell, Now, Strategy};
use crate::table_cells;

pub(crate) struct StorageVersionStrategy;

impl Strategy for StorageVersionStrategy {
    fn row(&self, version: &Value, now: Now) -> Option<Vec<Cell>> {
        let status = &version["status"];
        let common = status.str_at(&["commonEncodingVersion"]);
        let of_servers = status["storageVersions"].items().iter();
        let shown: Vec<String> = of_servers
            .map(|server| format!("{}={}", server.str_at(&["apiServerID"]), server.str_at(&["encodingVersion"])))
            .collect();
        Some(vec![
            version.name().into(),
            if common.is_empty() { "<unset>" } else { common }.into(),
            if shown.is_empty() { "<unset>".to_owned() } else { shown.join(",") }.into(),
            table_cells::created(version, now),
        ])
    }
}
