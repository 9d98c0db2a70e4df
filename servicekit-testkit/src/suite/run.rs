use std::{
    any::Any,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use libtest_mimic::{Arguments, Completion, Trial};
use servicekit_core::{Env, Namespace, Random, clock::timeout, store::Store as _};

use super::{Case, Fresh, Need, Setting, Subject, Time, World, cases};
use crate::{
    fault::{Counting, Faulty, Plan},
    sim::{self, SimClock},
};

/// How to run a case.
#[derive(Clone, Copy, Debug, PartialEq)]
#[expect(clippy::exhaustive_structs, reason = "made by tests")]
pub struct Options {
    /// What all randomness comes from.
    pub seed: u64,
    /// The faults; `None` selects the cases that need a store without.
    pub plan: Option<Plan>,
}

/// What came of a case.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "there are three")]
pub enum Outcome {
    /// The promise is kept.
    Passed,
    /// It was not run, for lack of this.
    Ignored(Need),
    /// The promise is broken; how that was seen.
    Failed(String),
}

/// What came of all cases.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Report {
    /// What was run.
    pub subject: &'static str,
    /// How it was run.
    pub options: Options,
    /// What came of each case.
    pub outcomes: Vec<(&'static str, Outcome)>,
}

/// A case that takes longer hangs.
const LONGEST_SIMULATED: Duration = Duration::from_secs(6 * 3600);
const LONGEST_REAL: Duration = Duration::from_secs(300);

impl Report {
    /// The cases that failed, and how.
    pub fn failed(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.outcomes.iter().filter_map(|(name, outcome)| match outcome {
            Outcome::Failed(how) => Some((*name, how.as_str())),
            Outcome::Passed | Outcome::Ignored(_) => None,
        })
    }

    /// How many cases passed.
    #[must_use]
    pub fn passed(&self) -> usize {
        self.outcomes.iter().filter(|(_, outcome)| *outcome == Outcome::Passed).count()
    }

    /// Panics unless every case passed or was ignored, with what is needed to repeat the failures.
    ///
    /// # Panics
    ///
    /// When a case failed, or none passed.
    pub fn expect_no_failures(&self) {
        assert!(self.failed().next().is_none() && self.passed() > 0, "{self}");
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self { subject, options, .. }, passed) = (self, self.passed());
        writeln!(
            f,
            "{subject}, seed {}: {passed} passed, {} failed",
            options.seed,
            self.failed().count()
        )?;
        self.failed().try_for_each(|(name, how)| writeln!(f, "- {name}: {how}"))
    }
}

pub(super) fn main_of(subjects: impl IntoIterator<Item = Subject>) -> ExitCode {
    let mut arguments = Arguments::from_args();
    // In real time most cases wait most of the time.
    arguments.test_threads.get_or_insert(16);
    let options = Options { seed: 0, plan: None };
    let trials = subjects.into_iter().flat_map(|subject| {
        cases().map(move |case| {
            let (subject, name) = (subject.clone(), format!("{}::{}", subject.name, case.name));
            Trial::ignorable_test(name, move || match run(&subject, case, options) {
                Outcome::Passed => Ok(Completion::Completed),
                Outcome::Ignored(need) => Ok(Completion::ignored_with(format!("needs {need}"))),
                Outcome::Failed(how) => Err(how.into()),
            })
        })
    });
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}

pub(super) fn run(subject: &Subject, case: &Case, options: Options) -> Outcome {
    let ran = catch_unwind(AssertUnwindSafe(|| match subject.time {
        Time::Simulated => {
            sim::run(options.seed, |sim| run_in(subject, case, options, sim.env, Some(sim.clock)))
        }
        Time::Real => {
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
            let runtime = runtime.expect("a runtime can be built");
            let outcome = runtime.block_on(run_in(subject, case, options, Env::system(), None));
            // What a case left behind must not keep the next from running.
            runtime.shutdown_background();
            outcome
        }
    }));
    ran.unwrap_or_else(|panic| Outcome::Failed(message(&*panic)))
}

async fn run_in(
    subject: &Subject,
    case: &Case,
    options: Options,
    env: Env,
    clock: Option<SimClock>,
) -> Outcome {
    let Fresh { store, backend, apart, keep } = match (subject.open)(env.clone()).await {
        Ok(fresh) => fresh,
        Err(error) => return Outcome::Failed(format!("no store was opened: {error:?}")),
    };
    let faulty = Faulty::new(store, env.clock.clone(), options.seed);
    faulty.follow(options.plan.unwrap_or(Plan::NONE));
    let counting = Counting::new(Arc::new(faulty.clone()));
    let setting = Setting {
        capabilities: counting.capabilities(),
        is_simulated: clock.is_some(),
        has_faults: subject.fails || options.plan.is_some(),
    };
    if let Some(need) = case.lacks(&setting) {
        return Outcome::Ignored(need);
    }
    let longest = if clock.is_some() { LONGEST_SIMULATED } else { LONGEST_REAL };
    let namespace = namespace(&env.random);
    let world =
        World { env: env.clone(), clock, faulty, counting, namespace, setting, backend, apart };
    let ran = timeout(&*env.clock, longest, (case.run)(world)).await;
    drop(keep);
    match ran {
        Ok(()) => Outcome::Passed,
        Err(_) => Outcome::Failed(format!("it hangs: not over after {longest:?}")),
    }
}

/// A namespace that nobody else uses, on a store that may be shared.
fn namespace(random: &Random) -> Namespace {
    format!("suite-{}", random.id()).parse().expect("a fine namespace")
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic").to_owned()
}
