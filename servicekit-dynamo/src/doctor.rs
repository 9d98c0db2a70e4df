//! What a doctor sees of the table: its shape, what it is billed by, what removes the old, what is backed up, and the time.

use std::sync::Arc;

use async_trait::async_trait;
use aws_sdk_dynamodb::types::{
    BillingMode, PointInTimeRecoveryStatus, TableDescription, TimeToLiveStatus,
};
use futures_util::join;
use servicekit_core::{Doctor, Effect, Error, Finding, Kind, Result, Severity};

use crate::{error::is_missing_table, records::EXPIRES, store::Dynamo, table::Replicas};

/// Examines the table, and then what core examines of every store.
#[derive(Debug)]
pub(crate) struct TableDoctor {
    dynamo: Dynamo,
    next: Arc<dyn Doctor>,
}

const REPLICAS: &str = "replicas";

/// A clock that is further off than this, in milliseconds, makes certificates and logs hard to understand. (DynamoDB itself
/// refuses what was signed five minutes off, and is then asked again by its own time.)
const FAR: u64 = 30_000;

impl TableDoctor {
    pub(crate) fn new(dynamo: Dynamo, next: Arc<dyn Doctor>) -> Self {
        Self { dynamo, next }
    }

    /// The table; made, where that is wanted, before it is looked at.
    async fn describe(&self) -> Result<TableDescription> {
        let table = &self.dynamo.0.table;
        table.make().await?;
        table.describe().await
    }

    async fn replicas(&self, described: &TableDescription) -> Finding {
        let check = REPLICAS;
        match self.dynamo.0.table.replicas(described).await {
            Replicas::None => Finding::fine(check, "none: one Region, one truth"),
            Replicas::Here => {
                let detail =
                    "there are some, and leases and certificates are written in this Region alone";
                Finding::fine(check, detail)
            }
            Replicas::Elsewhere(why) => {
                let remedy =
                    "write them in one Region, and name it in every address: &leases-region=";
                Finding::problem(
                    check,
                    format!("leases and certificates are refused: {why}"),
                    remedy,
                )
            }
        }
    }

    async fn time_to_live(&self) -> Finding {
        let check = "time to live";
        let table = &self.dynamo.0.table;
        let client = table.client().await;
        let asked = client.describe_time_to_live().table_name(&table.config.table).send();
        let answer = match table.ask(Effect::Nothing, asked).await {
            Ok(answer) => answer,
            Err(error) => return untold(check, "dynamodb:DescribeTimeToLive", &error),
        };
        let remedy = format!(
            "aws dynamodb update-time-to-live --time-to-live-specification Enabled=true,AttributeName={EXPIRES} \
             --table-name {}",
            table.config.table
        );
        let told = answer.time_to_live_description();
        let attribute = told.and_then(|told| told.attribute_name());
        let is_on = matches!(
            told.and_then(|told| told.time_to_live_status()),
            Some(TimeToLiveStatus::Enabled | TimeToLiveStatus::Enabling)
        );
        match attribute {
            Some(EXPIRES) if is_on => Finding::fine(check, "removes what has been over for a day"),
            Some(other) if is_on => {
                let detail = format!("it is by the attribute {other:?}, so what is over stays");
                let first = format!(
                    "first switch that off, which may take an hour: {}; then: {remedy}",
                    remedy.replace(EXPIRES, other).replace("Enabled=true", "Enabled=false")
                );
                Finding::warning(check, detail, first)
            }
            _ => {
                let detail = "off: what is over stays, and is read with every list";
                Finding::warning(check, detail, remedy)
            }
        }
    }

    async fn backups(&self) -> Finding {
        let check = "point-in-time recovery";
        let table = &self.dynamo.0.table;
        let client = table.client().await;
        let asked = client.describe_continuous_backups().table_name(&table.config.table).send();
        let answer = match table.ask(Effect::Nothing, asked).await {
            Ok(answer) => answer,
            Err(error) => return untold(check, "dynamodb:DescribeContinuousBackups", &error),
        };
        let told = answer.continuous_backups_description();
        let told = told.and_then(|told| told.point_in_time_recovery_description());
        match told.and_then(|told| told.point_in_time_recovery_status()) {
            Some(PointInTimeRecoveryStatus::Enabled) => Finding::fine(check, "on"),
            _ => {
                let detail =
                    "off: certificates cannot be brought back when somebody deletes the table";
                let remedy = format!(
                    "aws dynamodb update-continuous-backups --point-in-time-recovery-specification \
                     PointInTimeRecoveryEnabled=true --table-name {}",
                    table.config.table
                );
                Finding::warning(check, detail, remedy)
            }
        }
    }

    /// Once there was an answer.
    fn clock(&self) -> Finding {
        let check = "clock";
        let Some(ahead) = self.dynamo.0.table.clock.ahead() else {
            let detail = "no answer had a Date: who is alive is judged by the hosts' own clocks";
            return Finding::warning(
                check,
                detail,
                "see what removes that header; DynamoDB sends it",
            );
        };
        let off = ahead.unsigned_abs();
        let side = if ahead > 0 { "ahead of" } else { "behind" };
        let detail = format!("this host's is {}.{:03} s {side} DynamoDB's", off / 1000, off % 1000);
        if off > FAR {
            return Finding::warning(check, detail, "set it, and keep it so with NTP");
        }
        Finding::fine(check, detail)
    }
}

#[async_trait]
impl Doctor for TableDoctor {
    async fn examine(&self) -> Vec<Finding> {
        let described = match self.describe().await {
            Ok(described) => described,
            // Nothing else can be told, or should be advised: it may be somebody else's table.
            Err(error) => {
                let mut findings = vec![Finding::problem("table", error.message(), remedy(&error))];
                // Whether leases are refused hangs on what could not be seen.
                let next = self.next.examine().await;
                findings.extend(next.into_iter().filter(|finding| finding.check != "leases"));
                return findings;
            }
        };
        let mut findings = vec![shape(&described), self.replicas(&described).await];
        let (time_to_live, backups, next) =
            join!(self.time_to_live(), self.backups(), self.next.examine());
        findings.extend([time_to_live, backups, self.clock()]);
        // What core tells of leases is of what the store could do.
        let refused = findings
            .iter()
            .any(|finding| finding.check == REPLICAS && finding.severity > Severity::Fine);
        findings.extend(next.into_iter().filter(|finding| !refused || finding.check != "leases"));
        findings
    }

    async fn set_up(&self) -> Vec<Finding> {
        self.next.set_up().await
    }
}

fn remedy(error: &Error) -> &'static str {
    match error.kind() {
        Kind::Denied if error.message().contains("DescribeTable") => {
            "allow dynamodb:DescribeTable on it"
        }
        Kind::Denied => "see who asks: aws sts get-caller-identity",
        Kind::Unsupported => "name another table, and let create=true make it",
        Kind::Throttled => "bill it on demand, or raise its limits",
        _ if is_missing_table(error) => {
            "see that the Region and the table's name are right; create=true makes the table"
        }
        _ => "see that it can be reached from here, and what `endpoint` names",
    }
}

fn shape(table: &TableDescription) -> Finding {
    let on_demand = table.billing_mode_summary().and_then(|billing| billing.billing_mode());
    let billing = match (on_demand, table.provisioned_throughput()) {
        (Some(BillingMode::PayPerRequest), _) | (_, None) => "on demand".to_owned(),
        (_, Some(provisioned)) => format!(
            "{} read and {} write units provisioned",
            provisioned.read_capacity_units().unwrap_or_default(),
            provisioned.write_capacity_units().unwrap_or_default()
        ),
    };
    let (items, bytes) = (table.item_count().unwrap_or(0), table.table_size_bytes().unwrap_or(0));
    let indexes = table.local_secondary_indexes().len() + table.global_secondary_indexes().len();
    let detail = format!("billed {billing}; about {items} items, {} kB", bytes / 1000);
    if indexes == 0 {
        return Finding::fine("table", detail);
    }
    let detail = format!(
        "{detail}; {indexes} indexes, which make writes dearer and which nothing here reads"
    );
    Finding::warning("table", detail, "remove them, or give servicekit a table of its own")
}

/// Looking at these takes rights that servicekit's own work does not.
fn untold(check: &str, action: &str, error: &Error) -> Finding {
    if error.kind() == Kind::Denied {
        return Finding::fine(check, format!("these credentials may not see it ({action})"));
    }
    let detail = format!("it could not be told: {}", error.message());
    Finding::warning(check, detail, "try again")
}
