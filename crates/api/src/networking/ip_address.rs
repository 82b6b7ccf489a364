//! IPAddress.

use apimachinery::Value;
use apimachinery::field::{Cursor, FieldErrors};

use super::required_segment;
use crate::strategy::{Cell, Now, Strategy};
use crate::validation::names::{dns_subdomain, path_segment};
use crate::validation::{Checks, net, text};

pub(crate) struct IpAddressStrategy;

impl Strategy for IpAddressStrategy {
    fn validate_name(&self, name: &str, _: bool) -> Vec<String> {
        net::ip(name)
    }

    fn validate(&self, address: &Value) -> FieldErrors {
        let mut errs = FieldErrors::new();
        let parent = Cursor::root(address).fields(&["spec", "parentRef"]);
        if parent.is_absent() {
            errs.required(&parent.path, "");
            return errs;
        }
        let (group, namespace) = (parent.field("group"), parent.field("namespace"));
        if !text(&group).is_empty() {
            errs.each(&group, dns_subdomain(text(&group)));
        }
        required_segment(&parent.field("resource"), &mut errs);
        required_segment(&parent.field("name"), &mut errs);
        if !text(&namespace).is_empty() {
            errs.each(&namespace, path_segment(text(&namespace)));
        }
        errs
    }

    fn validate_update(&self, address: &Value, old: &Value) -> FieldErrors {
        let parent = |v| Cursor::root(v).fields(&["spec", "parentRef"]);
        let mut errs = FieldErrors::new();
        errs.immutable_struct(&parent(address), &parent(old));
        errs
    }

    fn row(&self, address: &Value, _: Now) -> Option<Vec<Cell>> {
        let parent = address.at(&["spec", "parentRef"]);
        let group = parent.str_at(&["group"]);
        let mut shown = parent.str_at(&["resource"]).to_owned();
        if !group.is_empty() {
            shown = format!("{shown}.{group}");
        }
        for field in ["namespace", "name"] {
            let part = parent.str_at(&[field]);
            if !part.is_empty() {
                shown = format!("{shown}/{part}");
            }
        }
        Some(vec![address.name().into(), shown.into()])
    }
}
