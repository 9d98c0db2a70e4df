//! Many services from one TOML file. Its keys are the flags, so that there is one list of them, with one set of defaults.

use std::{fs, path::Path, time::Duration};

use clap::Parser;
use servicekit::agent::{Service, probe::Clients};
use toml::{Table, Value};

use super::{Monitored, Plan};
use crate::{args, context::Context, report::Failure, usage};

/// The flags of one service, as its keys.
#[derive(Debug, Parser)]
#[command(no_binary_name = true, disable_help_flag = true)]
struct Keys {
    #[command(flatten)]
    service: Monitored,
}

/// Reads a file of services; `detect_within` is for one that does not say.
pub(super) fn read(
    file: &Path,
    detect_within: Duration,
    clients: &mut Clients,
    context: &Context,
) -> Result<Plan, Failure> {
    let name = file.display();
    let text = fs::read_to_string(file)
        .map_err(|error| Failure::Usage(format!("--config {name}: {error}")))?;
    parse(&text, detect_within, clients, context)
        .map_err(|problem| Failure::Usage(format!("--config {name}: {problem}")))
}

fn parse(
    text: &str,
    detect_within: Duration,
    clients: &mut Clients,
    context: &Context,
) -> Result<Plan, String> {
    let mut table = text.parse::<Table>().map_err(|error| {
        let at = error.span().map_or(0, |span| span.start);
        let line = text.get(..at).map_or(1, |before| before.matches('\n').count() + 1);
        format!("line {line}: {}", error.message())
    })?;
    let detect_within = match table.remove("detect-within") {
        Some(value) => args::positive(&scalar("detect-within", &value)?)
            .map_err(|problem| format!("detect-within: {problem}"))?,
        None => detect_within,
    };
    let services = match table.remove("service") {
        Some(Value::Array(services)) if !services.is_empty() => services,
        _ => return Err("expected at least one [[service]]".into()),
    };
    if let Some(key) = table.keys().next() {
        return Err(format!("unknown key {key:?}; there are detect-within and [[service]]"));
    }
    let services = services.iter().enumerate().map(|(before, value)| {
        service(value, detect_within, clients, context).map_err(|problem| {
            let label = value.get("label").and_then(Value::as_str);
            let label = label.map(|label| format!(" ({label:?})")).unwrap_or_default();
            format!("[[service]] number {}{label}: {problem}", before + 1)
        })
    });
    Ok(Plan { detect_within, services: services.collect::<Result<_, _>>()? })
}

fn service(
    value: &Value,
    detect_within: Duration,
    clients: &mut Clients,
    context: &Context,
) -> Result<Service, String> {
    let Value::Table(table) = value else { return Err("expected a table".into()) };
    let mut flags = Vec::new();
    for (key, value) in table {
        flags.extend(flags_of(key, value)?);
    }
    let keys = Keys::try_parse_from(flags).map_err(|error| usage::one_line(&error))?;
    let service = keys.service.service(detect_within, clients, context);
    service.map_err(|failure| match failure {
        Failure::Usage(problem) => problem,
        other => other.message("").unwrap_or_default(),
    })
}

fn flags_of(key: &str, value: &Value) -> Result<Vec<String>, String> {
    if !key.chars().all(|c| c.is_ascii_lowercase() || c == '-') {
        return Err(format!("unknown key {key:?}"));
    }
    let flag = |value: String| format!("--{key}={value}");
    Ok(match value {
        Value::Boolean(true) => vec![format!("--{key}")],
        Value::Boolean(false) => vec![],
        Value::Array(values) => {
            let values = values.iter().map(|value| scalar(key, value).map(flag));
            values.collect::<Result<_, _>>()?
        }
        Value::Table(pairs) => {
            let pair = |(name, value)| Ok(flag(format!("{name}={}", scalar(key, value)?)));
            pairs.iter().map(pair).collect::<Result<_, String>>()?
        }
        value => vec![flag(scalar(key, value)?)],
    })
}

fn scalar(key: &str, value: &Value) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Integer(number) => Ok(number.to_string()),
        other => Err(format!("{key}: expected text or a whole number, not {}", other.type_str())),
    }
}
