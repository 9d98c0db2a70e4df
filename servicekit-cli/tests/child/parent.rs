//! What the tests start in place of servicekit: a process with a supervisor, steered by signals.

use std::{env, ffi::OsString, fs, process::ExitCode, sync::Arc, time::Duration};

use servicekit::{Clock, Env};
use servicekit_cli::child::{Ending, Options, Standby, StartError};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// How the parent behaves, handed over in the environment.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub(crate) struct Script {
    /// From the start to the first deadline, and from each renewal to the next.
    pub(crate) lease_ms: u64,
    pub(crate) kill_after_ms: u64,
    /// From one renewal to the next; 0 does not renew.
    pub(crate) renew_ms: u64,
    pub(crate) cgroup: bool,
}

pub(crate) const SCRIPT: &str = "SERVICEKIT_TEST_SCRIPT";

/// SIGHUP, SIGINT and SIGTERM are passed on; SIGUSR1 stops the child; SIGUSR2 lets go of it, and then makes a file
/// `disarmed`. Exits as servicekit would.
pub(crate) fn main(command: Vec<OsString>) -> ExitCode {
    let script = serde_json::from_str(&env::var(SCRIPT).unwrap()).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    ExitCode::from(runtime.block_on(run(command, script)))
}

async fn run(command: Vec<OsString>, script: Script) -> u8 {
    let clock: Arc<dyn Clock> = Env::system().clock;
    let lease = Duration::from_millis(script.lease_ms);
    let on = |kind: SignalKind| signal(kind).unwrap();
    let mut passed =
        [SignalKind::hangup(), SignalKind::interrupt(), SignalKind::terminate()].map(on);
    let mut stop = on(SignalKind::user_defined1());
    let mut disarm = on(SignalKind::user_defined2());
    let options = Options {
        command,
        env: vec![("SERVICEKIT_TEST_CHILD".into(), "1".into())],
        deadline: clock.now() + lease,
        kill_after: Duration::from_millis(script.kill_after_ms),
    };
    let standby = Standby::new(script.cgroup).unwrap();
    let mut supervisor = match standby.start(clock.clone(), options).await {
        Ok(supervisor) => supervisor,
        Err(StartError::NotFound(..)) => return 127,
        Err(StartError::CannotExecute(..)) => return 126,
        Err(error) => {
            eprintln!("{error:?}");
            return 125;
        }
    };
    loop {
        let renewal = async {
            match script.renew_ms {
                0 => std::future::pending().await,
                millis => clock.sleep(Duration::from_millis(millis)).await,
            }
        };
        tokio::select! {
            ending = supervisor.ended() => return match ending {
                Ending::Exited(code) => code,
                Ending::Stopped => 123,
                Ending::GuardDied => 125,
            },
            () = renewal => supervisor.arm(clock.now() + lease),
            number = any(&mut passed) => supervisor.signal(number),
            _ = stop.recv() => supervisor.stop(),
            _ = disarm.recv() => {
                supervisor.disarm();
                fs::write("disarmed", "").unwrap();
            }
        }
    }
}

async fn any([hup, int, term]: &mut [Signal; 3]) -> i32 {
    tokio::select! {
        _ = hup.recv() => 1,
        _ = int.recv() => 2,
        _ = term.recv() => 15,
    }
}
