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
    /// Who was said to be left out, and why, so that it is not said again.
    left_out: BTreeSet<(String, ServiceId)>,
    /// Who was said to be lost.
    lost: BTreeSet<ServiceId>,
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
        if hosts.all && hosts.exec.is_some() && format.is_none() {
            let message =
                "--all prints a table for people; for the command of --exec add --format json";
            return Err(Failure::Usage(message.into()));
        }
        let port = match hosts.port {
            _ if hosts.no_port => Port::None,
            Some(port) => Port::Fixed(port),
            None => Port::Registered,
        };
        let label = hosts.label.clone();
        let (left_out, lost) = Default::default();
        Ok(Self { label, format, all: hosts.all, port, left_out, lost })
    }

    /// Those that are asked for, in natural order, with the ports that are asked for. Who has to be left out is told, once.
    pub(super) fn pick(
        &mut self,
        instances: &[Arc<Instance>],
        mut tell: impl FnMut(String),
    ) -> Vec<Instance> {
        let mut problems = BTreeMap::<String, Vec<ServiceId>>::new();
        let mut picked = Vec::new();
        for instance in instances.iter().filter(|instance| self.takes(instance.state)) {
            let mut instance = Instance::clone(instance);
            instance.port = match self.port {
                Port::Registered => instance.port,
                Port::Fixed(port) => Some(port),
                Port::None => None,
            };
            match self.problem(&instance) {
                Some(problem) => problems.entry(problem).or_default().push(instance.service_id),
                None => picked.push(instance),
            }
        }
        if !self.lost.is_empty() {
            // Who came back may be lost again.
            self.lost = &self.lost & &lost(instances);
        }
        let mut left_out = BTreeSet::new();
        for (problem, ids) in problems {
            let keyed: Vec<_> = ids.into_iter().map(|id| (problem.clone(), id)).collect();
            let new = keyed.iter().filter(|both| !self.left_out.contains(*both));
            self.remark(new.map(|(_, id)| id), &format!("left out ({problem})"), &mut tell);
            left_out.extend(keyed);
        }
        self.left_out = left_out;
        format::sort_naturally(&mut picked);
        picked
    }

    /// Tells who is lost, once: they are missing although nobody saw them fail.
    pub(super) fn tell_lost(&mut self, instances: &[Arc<Instance>], mut tell: impl FnMut(String)) {
        let lost = if self.all { BTreeSet::new() } else { lost(instances) };
        let remark = "lost (no sign of life from the node)";
        self.remark(lost.difference(&self.lost), remark, &mut tell);
        self.lost = lost;
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

    /// Why an instance cannot be printed.
    fn problem(&self, instance: &Instance) -> Option<String> {
        // A host with a comma or a space in it would change the list for whoever reads it.
        args::host_problem(&instance.host)
            .or_else(|| Some(self.format?.problem(instance)?.to_owned()))
    }

    fn remark<'a>(
        &self,
        ids: impl Iterator<Item = &'a ServiceId>,
        remark: &str,
        tell: &mut impl FnMut(String),
    ) {
        let ids: Vec<_> = ids.map(ServiceId::as_str).collect();
        if !ids.is_empty() {
            let named = ids[..ids.len().min(NAMED)].join(", ");
            let more = if ids.len() > NAMED { ", …" } else { "" };
            tell(format!("{}: {} {remark}: {named}{more}", self.label, ids.len()));
        }
    }
}

fn lost(instances: &[Arc<Instance>]) -> BTreeSet<ServiceId> {
    let lost = instances.iter().filter(|instance| instance.state == State::Lost);
    lost.map(|instance| instance.service_id.clone()).collect()
}
