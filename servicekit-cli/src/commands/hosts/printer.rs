//! What of a label's instances is printed, and as what.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use servicekit::{Instance, Label, ServiceId, State};

use super::Hosts;
use crate::{
    args,
    format::{self, Format},
    output::Output,
    report::Failure,
};

/// Picks what is asked for, and prints it as is asked for.
#[derive(Debug)]
pub(super) struct Printer {
    label: Label,
    /// `None` unless one is named.
    format: Option<Format>,
    all: bool,
    port: Port,
    /// What was said of whom, so that it is not said again.
    said: BTreeSet<(String, ServiceId)>,
}

#[derive(Clone, Copy, Debug)]
enum Port {
    Registered,
    Fixed(u16),
    None,
}

/// So many are named where something is said of many.
const NAMED: usize = 3;

impl Printer {
    pub(super) fn new(hosts: &Hosts) -> Result<Self, Failure> {
        let format = match hosts.output {
            Some(Output::Json) => Some(Format::Json),
            Some(Output::Text) | None => hosts.format,
        };
        if hosts.all && !matches!(format, None | Some(Format::Json)) {
            let message = "--all shows states: it prints a table, or JSON with --format json";
            return Err(Failure::Usage(message.into()));
        }
        let port = match hosts.port {
            _ if hosts.no_port => Port::None,
            Some(port) => Port::Fixed(port),
            None => Port::Registered,
        };
        let label = hosts.label.clone();
        Ok(Self { label, format, all: hosts.all, port, said: BTreeSet::new() })
    }

    /// Those that are asked for, in natural order, with the ports that are asked for. What is remarkable about the others is
    /// told, once.
    pub(super) fn pick(
        &mut self,
        instances: Vec<Arc<Instance>>,
        mut tell: impl FnMut(String),
    ) -> Vec<Instance> {
        let mut remarks = BTreeMap::<String, Vec<ServiceId>>::new();
        let mut picked = Vec::new();
        for instance in instances {
            let mut instance = Arc::unwrap_or_clone(instance);
            instance.port = match self.port {
                Port::Registered => instance.port,
                Port::Fixed(port) => Some(port),
                Port::None => None,
            };
            match self.remark(&instance) {
                Some(remark) => remarks.entry(remark).or_default().push(instance.service_id),
                None if self.takes(instance.state) => picked.push(instance),
                None => {}
            }
        }
        self.tell(remarks, &mut tell);
        format::sort_naturally(&mut picked);
        picked
    }

    /// Whether the list holds what was asked for; one that is draining is in it for the sake of those that use it already.
    pub(super) fn finds_any(&self, list: &[Instance]) -> bool {
        list.iter().any(|instance| self.all || instance.state == State::Up)
    }

    pub(super) fn is_structured(&self) -> bool {
        self.format.is_some_and(Format::is_structured)
    }

    pub(super) fn render(&self, list: &[Instance]) -> Result<String, Failure> {
        self.render_as(Format::Csv, list)
    }

    /// For a command that reads it.
    pub(super) fn render_for_hook(&self, list: &[Instance]) -> Result<String, Failure> {
        self.render_as(Format::Lines, list)
    }

    /// As one of many: a line, or lines with an empty one after them.
    pub(super) fn render_item(&self, list: &[Instance]) -> Result<String, Failure> {
        let text = self.render(list)?;
        let is_one_line = !self.all && self.format.is_none_or(Format::is_one_line);
        let is_complete = is_one_line || self.format == Some(Format::Json);
        Ok(if is_complete && !text.is_empty() { text } else { text + "\n" })
    }

    /// In the format that is named, or as a table of all, or in this one.
    fn render_as(&self, default: Format, list: &[Instance]) -> Result<String, Failure> {
        match self.format {
            Some(format) => format.render(&self.label, list),
            None if self.all && list.is_empty() => Ok(String::new()),
            None if self.all => Ok(format::table(list)),
            None => default.render(&self.label, list),
        }
    }

    fn takes(&self, state: State) -> bool {
        self.all || self.format.map_or(state == State::Up, |format| format.takes(state))
    }

    /// Why an instance is not there that one would look for.
    fn remark(&self, instance: &Instance) -> Option<String> {
        if self.takes(instance.state) {
            // A host with a comma or a space in it would change the list for whoever reads it.
            let problem = args::host_problem(&instance.host);
            let cannot_hold = || self.format.and_then(|format| format.problem(instance));
            let problem = problem.or_else(|| cannot_hold().map(str::to_owned))?;
            return Some(format!("left out ({problem})"));
        }
        (instance.state == State::Lost).then(|| "lost (no sign of life from the node)".into())
    }

    /// Tells each remark of those of whom it was not yet made. Who was lost and came back may be lost again.
    fn tell(&mut self, remarks: BTreeMap<String, Vec<ServiceId>>, tell: &mut impl FnMut(String)) {
        let mut now = BTreeSet::new();
        for (remark, ids) in remarks {
            let keyed = ids.iter().map(|id| (remark.clone(), id.clone()));
            now.extend(keyed);
            let is_new = |id: &&ServiceId| !self.said.contains(&(remark.clone(), (*id).clone()));
            let new: Vec<_> = ids.iter().filter(is_new).map(ServiceId::as_str).collect();
            if !new.is_empty() {
                let named = new[..new.len().min(NAMED)].join(", ");
                let more = if new.len() > NAMED { ", …" } else { "" };
                tell(format!("{}: {} {remark}: {named}{more}", self.label, new.len()));
            }
        }
        self.said = now;
    }
}
