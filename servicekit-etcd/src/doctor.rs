//! What a doctor sees of the cluster: its members, their versions and leader, and the space that is left.

use std::{collections::BTreeSet, sync::Arc};

use async_trait::async_trait;
use etcd_client::{AlarmAction, AlarmType, Client, ResponseHeader, StatusResponse};
use futures_util::join;
use servicekit_core::{Doctor, Effect, Error, Finding, Kind};

use crate::store::Etcd;

/// Examines the members, and then what core examines of every store.
#[derive(Debug)]
pub(crate) struct ClusterDoctor {
    etcd: Etcd,
    next: Arc<dyn Doctor>,
}

/// From these on a leader that was stopped for a while ends no lease that others keep alive: per line of releases the
/// first with <https://github.com/etcd-io/etcd/pull/16822>.
const FIRST_SAFE: [(u32, u32, u32); 3] = [(3, 4, 31), (3, 5, 13), (3, 6, 0)];

impl ClusterDoctor {
    pub(crate) fn new(etcd: Etcd, next: Arc<dyn Doctor>) -> Self {
        Self { etcd, next }
    }

    async fn members(&self) -> Vec<Finding> {
        let ask = |client: Arc<Client>| async move { client.maintenance_client().status().await };
        let answers = self.etcd.0.cluster.ask_each(ask).await;
        let clusters = answers.iter().filter_map(|(_, answer)| answer.as_ref().ok()?.header());
        let clusters: BTreeSet<_> = clusters.map(ResponseHeader::cluster_id).collect();
        let mut findings = Vec::new();
        if clusters.len() > 1 {
            let detail = "the address names members of different clusters: a lease could be held in each of them";
            findings.push(Finding::problem("cluster", detail, "name the members of one cluster"));
        }
        for (endpoint, answer) in answers {
            let check = format!("member {endpoint}");
            match answer {
                Ok(status) => {
                    findings.push(Finding::fine(check, describe(&status)));
                    findings.extend(old_version(endpoint, status.version()));
                }
                Err(error) if error.kind() == Kind::Denied => {
                    findings.push(denied(check, &error));
                }
                Err(error) => {
                    let remedy = "start it, or leave it out of the address";
                    findings.push(Finding::problem(check, error.message(), remedy));
                }
            }
        }
        findings
    }

    async fn alarms(&self) -> Finding {
        let check = "alarms";
        let ask = |client: Arc<Client>| async move {
            let mut client = client.maintenance_client();
            client.alarm(AlarmAction::Get, AlarmType::None, None).await
        };
        match self.etcd.0.cluster.ask(Effect::Nothing, ask).await {
            Ok(answer) if answer.alarms().is_empty() => Finding::fine(check, "none"),
            Ok(answer) => {
                let raised = answer.alarms().iter().map(|alarm| match alarm.alarm() {
                    AlarmType::Nospace => "the space is used up, and nothing can be written",
                    AlarmType::Corrupt => "the members' data differ",
                    AlarmType::None => "unknown",
                });
                let raised = raised.collect::<Vec<_>>().join("; ");
                let remedy = "compact, defragment, then: etcdctl alarm disarm";
                Finding::problem(check, raised, remedy)
            }
            Err(error) if error.kind() == Kind::Denied => denied(check.into(), &error),
            Err(error) => Finding::warning(check, error.message(), "as the message says"),
        }
    }
}

#[async_trait]
impl Doctor for ClusterDoctor {
    async fn examine(&self) -> Vec<Finding> {
        let (mut findings, alarms, next) =
            join!(self.members(), self.alarms(), self.next.examine());
        findings.push(alarms);
        findings.extend(next);
        findings
    }

    async fn set_up(&self) -> Vec<Finding> {
        self.next.set_up().await
    }
}

fn describe(status: &StatusResponse) -> String {
    let role = match (status.leader(), status.header().map(|header| header.member_id())) {
        (0, _) => "without a leader",
        (leader, Some(id)) if leader == id => "leader",
        _ => "follower",
    };
    let size = status.db_size() >> 20;
    format!("etcd {}, {role}, {size} MiB of data", status.version())
}

/// A member whose stalled leadership may end leases that are kept alive elsewhere.
fn old_version(endpoint: &str, version: &str) -> Option<Finding> {
    let number = |part: Option<&str>| part.and_then(|part| part.parse().ok());
    let mut parts = version.split(['.', '-', '+']);
    let found = (number(parts.next())?, number(parts.next())?, number(parts.next())?);
    let same_line = FIRST_SAFE.iter().find(|safe| (safe.0, safe.1) == (found.0, found.1));
    let is_safe = same_line.map_or(found > FIRST_SAFE[2], |safe| found >= *safe);
    (!is_safe).then(|| {
        let detail = format!(
            "{version}: a leader that was stopped for a while may end leases that are alive, so that a session or a \
             lease is lost without need"
        );
        let remedy = "update to 3.4.31, 3.5.13, 3.6.0 or later";
        Finding::warning(format!("version of {endpoint}"), detail, remedy)
    })
}

/// Looking at the members may need rights that servicekit's own work does not.
fn denied(check: String, error: &Error) -> Finding {
    if error.message().contains("permission denied") {
        return Finding::fine(check, format!("this user may not see it ({})", error.message()));
    }
    Finding::problem(check, error.message(), "give the right user, password and certificates")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_versions_are_warned_of() {
        for (version, old) in [
            ("3.4.23", true),
            ("3.4.31", false),
            ("3.5.12", true),
            ("3.5.13", false),
            ("3.3.27", true),
            ("3.6.0", false),
            ("3.6.0-rc.1", false),
            ("3.7.1", false),
            ("4.0.0", false),
        ] {
            assert_eq!(old_version("db1:2379", version).is_some(), old, "{version}");
        }
        assert!(old_version("db1:2379", "unknown").is_none());
    }
}
