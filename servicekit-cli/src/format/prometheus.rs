//! The document of Prometheus' HTTP service discovery: a target group for each instance.

use std::collections::BTreeMap;

use serde::Serialize;
use servicekit::Instance;

use crate::{output, report::Failure};

#[derive(Serialize)]
struct TargetGroup {
    targets: [String; 1],
    labels: BTreeMap<String, String>,
}

pub(super) fn render(instances: &[Instance]) -> Result<String, Failure> {
    output::json(&instances.iter().map(target_group).collect::<Vec<_>>())
}

fn target_group(instance: &Instance) -> TargetGroup {
    let Instance { label, service_id, state, weight, zone, info, .. } = instance;
    let mut labels = BTreeMap::from([
        ("label".to_owned(), label.to_string()),
        ("service_id".to_owned(), service_id.to_string()),
        ("state".to_owned(), state.to_string()),
        ("weight".to_owned(), weight.to_string()),
    ]);
    labels.extend(zone.iter().map(|zone| ("zone".to_owned(), zone.clone())));
    labels.extend(info.iter().map(|(key, value)| (format!("info_{key}"), value.to_owned())));
    let labels = labels.into_iter().map(|(name, value)| (label_name(&name), value)).collect();
    TargetGroup { targets: [instance.address()], labels }
}

/// A name that Prometheus takes: what it does not allow becomes `_`.
fn label_name(name: &str) -> String {
    let allowed = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
    format!("__meta_servicekit_{}", name.chars().map(allowed).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::super::tests::instances;

    #[test]
    fn it_is_what_http_sd_wants() {
        let mut instances = instances(&[("::1", Some(80))]);
        instances[0].info = [("data-dir", "/srv")].into_iter().collect();
        assert_eq!(
            super::render(&instances).unwrap(),
            "[{\"targets\":[\"[::1]:80\"],\"labels\":{\"__meta_servicekit_info_data_dir\":\"/srv\",\
             \"__meta_servicekit_label\":\"web\",\"__meta_servicekit_service_id\":\"web-0\",\
             \"__meta_servicekit_state\":\"up\",\"__meta_servicekit_weight\":\"100\"}}]\n"
        );
    }
}
