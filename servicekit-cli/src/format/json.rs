//! An array of objects, one for each instance.

use serde::Serialize;
use servicekit::{Instance, Label, ServiceId, State, Timestamp, instance::Info};

use crate::{output, report::Failure};

#[derive(Serialize)]
struct Host<'a> {
    #[serde(flatten)]
    summary: Summary<'a>,
    weight: u32,
    zone: Option<&'a str>,
    info: &'a Info,
}

/// What every object about an instance begins with.
#[derive(Serialize)]
pub(crate) struct Summary<'a> {
    label: &'a Label,
    service_id: &'a ServiceId,
    host: &'a str,
    port: Option<u16>,
    state: State,
    reason: &'a str,
    since: Timestamp,
}

pub(super) fn render(instances: &[Instance]) -> Result<String, Failure> {
    let hosts = instances.iter().map(|instance| Host {
        summary: Summary::of(instance),
        weight: instance.weight,
        zone: instance.zone.as_deref(),
        info: &instance.info,
    });
    output::json(&hosts.collect::<Vec<_>>())
}

impl<'a> Summary<'a> {
    pub(crate) fn of(instance: &'a Instance) -> Self {
        let Instance { label, service_id, host, port, state, reason, since, .. } = instance;
        Self { label, service_id, host, port: *port, state: *state, reason, since: *since }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::instances;

    #[test]
    fn every_key_is_always_there() {
        let json = super::render(&instances(&[("10.0.0.2", None)])).unwrap();
        assert_eq!(
            json,
            "[{\"label\":\"web\",\"service_id\":\"web-0\",\"host\":\"10.0.0.2\",\"port\":null,\"state\":\"up\",\
             \"reason\":\"200 (rise 1)\",\"since\":\"2025-11-21T00:00:00.000Z\",\"weight\":100,\"zone\":null,\"info\":{}}]\n"
        );
    }
}
