//! `servicekit man`: the manual, made of what `--help` knows.

use std::{fs, io, path::PathBuf};

use clap_mangen::Man as Page;
use roff::{Roff, roman};

use crate::{exit::Exit, output, report::Failure, usage};

/// Print the manual page, or write those of all commands
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  servicekit man > servicekit.1
  servicekit man --out /tmp/man1")]
pub(crate) struct Man {
    /// Write a page for each command into this folder, and print their paths
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// Where a page is read.
const SECTION: &str = "1";

impl Man {
    pub(crate) async fn run(self) -> Result<Exit, Failure> {
        let definition = usage::definition().disable_help_subcommand(true);
        let text = match self.out {
            None => page(definition).map(|(_, text)| text),
            Some(folder) => write(folder.clone(), definition).map_err(|error| {
                io::Error::new(error.kind(), format!("{}: {error}", folder.display()))
            }),
        };
        output::print(text.map_err(|error| Failure::Host(error.to_string()))?).await?;
        Ok(Exit::DONE)
    }
}

fn write(folder: PathBuf, definition: clap::Command) -> io::Result<String> {
    fs::create_dir_all(&folder)?;
    let mut paths = String::new();
    for command in family(definition) {
        let (name, text) = page(command)?;
        let path = folder.join(name);
        fs::write(&path, text)?;
        paths += &format!("{}\n", path.display());
    }
    Ok(paths)
}

/// A command, and all below it.
fn family(mut command: clap::Command) -> Vec<clap::Command> {
    command.build();
    let children = command.get_subcommands().filter(|child| !child.is_hide_set()).cloned();
    let below: Vec<_> = children.flat_map(family).collect();
    std::iter::once(command).chain(below).collect()
}

/// The name of a file, and what belongs into it.
fn page(command: clap::Command) -> io::Result<(String, String)> {
    let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    let has_commands = command.has_subcommands();
    let source = concat!("servicekit ", env!("CARGO_PKG_VERSION"));
    let title = command.get_display_name().unwrap_or("servicekit").to_uppercase();
    // Of an empty date the page would keep nothing, and take what follows for it.
    let page = Page::new(command).title(title).section(SECTION).date(" ").source(source);
    let page = page.manual("servicekit");
    let mut text = Vec::new();
    page.render_title(&mut text)?;
    page.render_name_section(&mut text)?;
    page.render_synopsis_section(&mut text)?;
    page.render_description_section(&mut text)?;
    page.render_options_section(&mut text)?;
    if has_commands {
        page.render_subcommands_section(&mut text)?;
    }
    notes(&help).to_writer(&mut text)?;
    Ok((page.get_filename(), String::from_utf8_lossy(&text).into_owned()))
}

/// What a help ends with: `Heading:` and lines that keep their breaks, or prose with such lines below it.
fn notes(help: &str) -> Roff {
    let mut roff = Roff::new();
    for block in help.split("\n\n").filter(|block| !block.is_empty()) {
        let mut lines = block.lines().peekable();
        let heading = lines.next_if(|line| is_heading(line));
        let heading = heading.unwrap_or("Notes:").trim_end_matches(':').to_uppercase();
        roff.control("SH", [heading.as_str()]);
        let mut is_literal = false;
        for line in lines {
            let indented = line.starts_with("  ");
            if std::mem::replace(&mut is_literal, indented) != indented {
                roff.control(if indented { "nf" } else { "fi" }, []);
            }
            roff.text([roman(line.strip_prefix("  ").unwrap_or(line))]);
        }
        if is_literal {
            roff.control("fi", []);
        }
    }
    roff
}

fn is_heading(line: &str) -> bool {
    line.ends_with(':') && line.split_whitespace().count() <= 3
}
