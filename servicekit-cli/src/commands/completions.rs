//! `servicekit completions`: what makes a shell complete the command line.

use clap_complete::{Shell as Generator, generate};

use crate::{exit::Exit, output, report::Failure, usage};

/// Print what makes a shell complete this command
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  servicekit completions bash > servicekit.bash
  servicekit completions zsh > _servicekit
  servicekit completions fish > servicekit.fish

Where it belongs:
  bash  /etc/bash_completion.d/servicekit, or sourced in ~/.bashrc
  zsh   a folder of $fpath, such as /usr/local/share/zsh/site-functions
  fish  ~/.config/fish/completions")]
pub(crate) struct Completions {
    /// For which shell
    #[arg(value_enum)]
    shell: Shell,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

impl Completions {
    pub(crate) async fn run(self) -> Result<Exit, Failure> {
        let generator = match self.shell {
            Shell::Bash => Generator::Bash,
            Shell::Zsh => Generator::Zsh,
            Shell::Fish => Generator::Fish,
        };
        let mut script = Vec::new();
        generate(generator, &mut usage::definition(), "servicekit", &mut script);
        output::print(String::from_utf8_lossy(&script).into_owned()).await?;
        Ok(Exit::DONE)
    }
}
