//! A child under a lease, with real processes: whatever is killed, stopped or hangs, nothing outlives the deadline.
//!
//! This program plays all parts: without arguments it is the tests, else the parent, or the guard that the parent starts.

#![expect(clippy::unwrap_used, reason = "a test may fail so")]

mod parent;
mod world;

use std::{
    env, fs,
    future::Future,
    io::{Read as _, Write as _},
    os::unix::fs::PermissionsExt as _,
    pin::Pin,
    process::{Command, ExitCode, Stdio},
    time::Duration,
};

use libtest_mimic::{Arguments, Trial};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use servicekit::Random;
use servicekit_cli::child::{self, GUARD, end_leftovers};

use self::{
    parent::Script,
    world::{LONG, World, home_cgroup},
};

fn main() -> ExitCode {
    match env::args().nth(1).as_deref() {
        Some(GUARD) => child::guard_main(),
        Some("parent") => parent::main(env::args_os().skip(2).collect()),
        _ => libtest_mimic::run(&Arguments::from_args(), trials()).exit_code(),
    }
}

type Test = fn(Script) -> Pin<Box<dyn Future<Output = ()> + Send>>;

macro_rules! tests {
    ($($name:ident),* $(,)?) => {
        [$((stringify!($name), (|script| Box::pin($name(script))) as Test)),*]
    };
}

/// Each test, with and without a cgroup around the child.
fn trials() -> Vec<Trial> {
    let both = tests![
        the_status_of_the_child_is_passed_on,
        death_by_a_signal_is_128_and_its_number,
        what_cannot_run_is_told_apart,
        input_and_output_pass_through_untouched,
        what_the_child_leaves_running_is_ended_before_it_is_reported,
        killing_the_parent_ends_the_tree,
        stopping_the_parent_ends_the_tree_by_the_deadline,
        a_parent_that_was_stopped_hears_how_the_child_ended,
        killing_the_guard_ends_the_tree,
        stopping_the_guard_ends_the_tree_by_the_deadline,
        a_guard_that_was_stopped_hears_of_the_renewals,
        killing_either_at_any_moment_leaves_nothing,
        a_renewal_moves_the_deadline,
        a_deadline_that_has_passed_starts_nothing,
        the_lost_lease_ends_the_tree_at_once,
        a_disarmed_child_outlives_deadline_and_parent,
        a_signal_to_end_is_passed_on_and_followed_by_sigkill,
        each_signal_arrives_once,
        a_stopped_child_is_continued_to_end,
        what_starts_itself_again_and_again_is_ended,
        the_guard_is_not_ended_with_servicekit,
        the_guard_buries_orphans,
        what_ran_before_is_spared,
    ];
    let cgroup_only = tests![
        a_cgroup_is_made_and_removed,
        what_was_left_by_both_is_ended_by_the_next,
        a_disarmed_child_is_no_leftover,
        a_disarmed_child_keeps_the_cgroups_that_it_has_made,
    ];
    let mut trials = Vec::new();
    for cgroup in [false, true] {
        for (name, test) in both {
            trials.push(trial(name, test, cgroup));
        }
    }
    let usable = home_cgroup().is_some();
    for (name, test) in cgroup_only {
        trials.push(trial(name, test, true).with_ignored_flag(!usable));
    }
    trials
}

fn trial(name: &str, test: Test, cgroup: bool) -> Trial {
    let kind = if cgroup { "cgroup" } else { "plain" };
    let script = Script { lease_ms: 60_000, kill_after_ms: 300, renew_ms: 0, cgroup };
    Trial::test(format!("{name}::{kind}"), move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(test(script));
        Ok(())
    })
}

/// Processes that get away from each other in every way, and do not mind SIGTERM.
const UNRULY: &str = r#"
    trap '' TERM HUP
    sleep 1000 &
    (sleep 1000 &)
    nohup sleep 1000 > nohup.out 2>&1 &
    setsid sleep 1000 &
    (setsid sh -c '(sleep 1000; sleep 1000) & exit' &)
    sh -c 'while :; do sleep 0.01; done' &
    : > ready
    while :; do sleep 1000; done
"#;
/// How many processes that makes, at least.
const MANY: usize = 7;
/// How much later than its deadline a tree may be seen to be gone, on a busy machine.
const SLACK: Duration = Duration::from_secs(3);

async fn unruly(script: &Script) -> World {
    let world = World::new(script, UNRULY);
    world.ready().await;
    world.wait_for("all are there", || world.children() >= MANY).await;
    world
}

async fn the_status_of_the_child_is_passed_on(script: Script) {
    for status in [0, 1, 7, 123, 255] {
        assert_eq!(World::new(&script, &format!("exit {status}")).ends().await, status);
    }
}

async fn death_by_a_signal_is_128_and_its_number(script: Script) {
    for signal in [2, 6, 9, 15] {
        assert_eq!(World::new(&script, &format!("kill -{signal} $$")).ends().await, 128 + signal);
    }
}

async fn what_cannot_run_is_told_apart(script: Script) {
    let run = |command| World::with(&script, &[command], |_| {});
    assert_eq!(run("./missing").ends().await, 127);
    assert_eq!(run("no-such-program-anywhere").ends().await, 127);
    assert_eq!(run("/").ends().await, 126);
    let prepare = |command: &mut Command| {
        let file = command.get_current_dir().unwrap().join("plain");
        fs::write(&file, "exit 0\n").unwrap();
        fs::set_permissions(file, fs::Permissions::from_mode(0o644)).unwrap();
    };
    assert_eq!(World::with(&script, &["./plain"], prepare).ends().await, 126);
}

async fn input_and_output_pass_through_untouched(script: Script) {
    let random = Random::seeded(7);
    let data: Vec<u8> = (0..1 << 20).map(|_| u8::try_from(random.below(256)).unwrap()).collect();
    let piped = |command: &mut Command| {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    };
    let mut world =
        World::with(&script, &["sh", "-c", "cat; echo end >&2; test \"$0\" = 'a b'", "a b"], piped);
    let mut stdin = world.parent.stdin.take().unwrap();
    let (mut out, mut err) = (world.parent.stdout.take().unwrap(), world.parent.stderr.take());
    let sent = data.clone();
    let writer = std::thread::spawn(move || stdin.write_all(&sent).unwrap());
    let reader = std::thread::spawn(move || {
        let mut received = Vec::new();
        out.read_to_end(&mut received).unwrap();
        received
    });
    let (sent, received) = (writer.join(), reader.join());
    sent.unwrap();
    assert!(received.unwrap() == data, "the child's output is not its input");
    let mut message = String::new();
    err.as_mut().unwrap().read_to_string(&mut message).unwrap();
    assert_eq!(message, "end\n");
    assert_eq!(world.ends().await, 0);
}

async fn what_the_child_leaves_running_is_ended_before_it_is_reported(script: Script) {
    let code = "trap '' TERM; sleep 1000 & (setsid sleep 1000 &) ; exit 3";
    let mut world = World::new(&script, code);
    // `ends` checks that nobody is left then; long before the deadline.
    assert_eq!(world.ends().await, 3);
}

async fn killing_the_parent_ends_the_tree(script: Script) {
    let mut world = unruly(&script).await;
    world.kill_parent().await;
    world.nobody_is_left(LONG).await;
}

async fn stopping_the_parent_ends_the_tree_by_the_deadline(script: Script) {
    let script = Script { lease_ms: 2000, renew_ms: 100, ..script };
    let mut world = unruly(&script).await;
    world.signal_parent(Signal::STOP);
    // Nothing but the deadline ends it: a stopped parent tells nobody.
    world.nobody_is_left(Duration::from_millis(script.lease_ms) + SLACK).await;
    world.signal_parent(Signal::CONT);
    assert_eq!(world.ends().await, 123);
}

async fn a_parent_that_was_stopped_hears_how_the_child_ended(script: Script) {
    let script = Script { lease_ms: 2000, renew_ms: 100, ..script };
    let mut world =
        World::new(&script, ": > ready; while [ ! -e go ]; do sleep 0.02; done; exit 9");
    world.ready().await;
    world.signal_parent(Signal::STOP);
    fs::write(world.path("go"), "").unwrap();
    world.env.clock.sleep(Duration::from_millis(script.lease_ms + 500)).await;
    world.signal_parent(Signal::CONT);
    assert_eq!(world.ends().await, 9);
}

async fn killing_the_guard_ends_the_tree(script: Script) {
    let mut world = unruly(&script).await;
    kill_process(world.guard().unwrap(), Signal::KILL).unwrap();
    assert_eq!(world.ends().await, 125);
}

async fn stopping_the_guard_ends_the_tree_by_the_deadline(script: Script) {
    let script = Script { lease_ms: 4000, ..script };
    let mut world = unruly(&script).await;
    kill_process(world.guard().unwrap(), Signal::STOP).unwrap();
    world.nobody_is_left(Duration::from_millis(script.lease_ms) + SLACK).await;
    assert_eq!(world.ends().await, 123);
}

async fn a_guard_that_was_stopped_hears_of_the_renewals(script: Script) {
    let script = Script { lease_ms: 4000, renew_ms: 200, ..script };
    let mut world =
        World::new(&script, ": > ready; while [ ! -e go ]; do sleep 0.02; done; exit 9");
    world.ready().await;
    let guard = world.guard().unwrap();
    kill_process(guard, Signal::STOP).unwrap();
    world.env.clock.sleep(Duration::from_millis(script.lease_ms)).await;
    kill_process(guard, Signal::CONT).unwrap();
    world.env.clock.sleep(Duration::from_millis(200)).await;
    fs::write(world.path("go"), "").unwrap();
    assert_eq!(world.ends().await, 9);
}

async fn killing_either_at_any_moment_leaves_nothing(script: Script) {
    for seed in 0..12 {
        let random = Random::seeded(seed);
        let mut world = World::new(&script, UNRULY);
        let delay = Duration::from_millis(random.below(60));
        eprintln!("seed {seed}: kills after {delay:?}");
        world.env.clock.sleep(delay).await;
        let guard = world.guard();
        if let Some(guard) = guard.filter(|_| random.chance(0.5)) {
            let _ = kill_process(guard, Signal::KILL);
            world.ends().await;
        } else {
            world.kill_parent().await;
            world.nobody_is_left(LONG).await;
        }
    }
}

async fn a_renewal_moves_the_deadline(script: Script) {
    let script = Script { lease_ms: 4000, renew_ms: 200, ..script };
    let mut world = World::new(&script, "sleep 6; exit 9");
    assert_eq!(world.ends().await, 9);
}

async fn a_deadline_that_has_passed_starts_nothing(script: Script) {
    let script = Script { lease_ms: 100, ..script };
    let mut world = World::new(&script, ": > ready");
    assert_eq!(world.ends().await, 123);
    assert!(!world.path("ready").exists());
}

async fn the_lost_lease_ends_the_tree_at_once(script: Script) {
    let mut world = unruly(&script).await;
    world.signal_parent(Signal::USR1);
    assert_eq!(world.ends().await, 123);

    let code = "trap 'echo term >> log; exit 0' TERM; : > ready; while :; do sleep 0.01; done";
    let script = Script { kill_after_ms: 20_000, ..script };
    let mut world = World::new(&script, code);
    world.ready().await;
    world.signal_parent(Signal::USR1);
    assert_eq!(world.ends().await, 123);
    assert_eq!(world.read("log"), "term\n");
}

async fn a_disarmed_child_outlives_deadline_and_parent(script: Script) {
    let script = Script { lease_ms: 2000, renew_ms: 100, ..script };
    let code = ": > ready; while [ ! -e go ]; do sleep 0.02; done; : > done";
    let mut world = World::new(&script, code);
    world.ready().await;
    world.signal_parent(Signal::USR2);
    world.wait_for("the child is let go", || world.path("disarmed").exists()).await;
    let deadline = world.now() + Duration::from_millis(script.lease_ms);
    world.kill_parent().await;
    world.env.clock.sleep_until(deadline + Duration::from_millis(500)).await;
    assert!(world.children() > 0);
    fs::write(world.path("go"), "").unwrap();
    world.wait_for("the child has ended by itself", || world.path("done").exists()).await;
    world.nobody_is_left(LONG).await;
}

async fn a_signal_to_end_is_passed_on_and_followed_by_sigkill(script: Script) {
    for signal in [Signal::INT, Signal::TERM] {
        let code = "trap 'exit 5' INT TERM; : > ready; while :; do sleep 0.01; done";
        let mut world = World::new(&script, code);
        world.ready().await;
        world.signal_parent(signal);
        assert_eq!(world.ends().await, 5);

        let code = "trap '' INT TERM; : > ready; while :; do sleep 0.01; done";
        let mut world = World::new(&script, code);
        world.ready().await;
        world.signal_parent(signal);
        assert_eq!(world.ends().await, 137);
    }
}

async fn each_signal_arrives_once(script: Script) {
    let script = Script { kill_after_ms: 20_000, ..script };
    let code = "
        for signal in HUP INT; do trap \"echo $signal >> log\" $signal; done
        trap 'echo TERM >> log; [ -e go ] && exit 0' TERM
        : > ready
        while :; do sleep 0.01; done";
    let mut world = World::new(&script, code);
    world.ready().await;
    for (signal, log) in
        [(Signal::HUP, "HUP\n"), (Signal::INT, "HUP\nINT\n"), (Signal::TERM, "HUP\nINT\nTERM\n")]
    {
        world.signal_parent(signal);
        world.wait_for("the signal is there", || world.read("log") == log).await;
    }
    // The lease is lost while the child is ending already: it is not disturbed again.
    world.signal_parent(Signal::USR1);
    fs::write(world.path("go"), "").unwrap();
    world.signal_parent(Signal::TERM);
    assert_eq!(world.ends().await, 123);
    assert_eq!(world.read("log"), "HUP\nINT\nTERM\nTERM\n");
}

async fn a_stopped_child_is_continued_to_end(script: Script) {
    let script = Script { kill_after_ms: 20_000, ..script };
    let code = "trap 'echo term > log; exit 0' TERM; : > ready; kill -STOP $$; sleep 1000";
    let mut world = World::new(&script, code);
    let stopped = || world.left().iter().any(|process| process.state.starts_with('T'));
    world.wait_for("the child is stopped", stopped).await;
    world.signal_parent(Signal::USR1);
    assert_eq!(world.ends().await, 123);
    assert_eq!(world.read("log"), "term\n");
}

async fn what_starts_itself_again_and_again_is_ended(script: Script) {
    // Each starts the next and ends; sooner or later by itself, should everything else fail.
    let chain = r#"
        trap '' TERM
        export runs=0
        export chain='
            runs=$((runs+1)) i=0
            again() {
                i=$((i+1))
                if [ $i -lt 300 ]; then again & exit; fi
                if [ $runs -lt 9 ]; then exec sh -c "$chain"; fi
            }
            again'
        sh -c "$chain" & sh -c "$chain" & sh -c "$chain" &
        : > ready
        while :; do sleep 1000; done"#;
    let crowd = "
        trap '' TERM
        keep() { while :; do sleep 0.0$1; done; }
        for i in 1 2 3 4 5 6 7 8 9; do (keep $i & keep $i & wait) & done
        : > ready
        while :; do sleep 0.01; done";
    for code in [chain, crowd] {
        let mut world = World::new(&script, code);
        world.ready().await;
        world.signal_parent(Signal::USR1);
        assert_eq!(world.ends().await, 123);

        let mut world = World::new(&script, code);
        world.ready().await;
        kill_process(world.guard().unwrap(), Signal::KILL).unwrap();
        assert_eq!(world.ends().await, 125);
    }
}

async fn the_guard_is_not_ended_with_servicekit(script: Script) {
    let mut world = unruly(&script).await;
    let guard = world.guard().unwrap();
    let cmdline = fs::read(format!("/proc/{}/cmdline", guard.as_raw_pid())).unwrap();
    assert!(cmdline.starts_with(b"sk-guard\0__guard\0"), "{}", cmdline.escape_ascii());
    for signal in [Signal::INT, Signal::QUIT, Signal::TERM] {
        kill_process(guard, signal).unwrap();
    }
    world.signal_parent(Signal::USR1);
    assert_eq!(world.ends().await, 123);
}

async fn the_guard_buries_orphans(script: Script) {
    let code = "i=0; while [ $i -lt 50 ]; do (true &) ; i=$((i+1)); done; : > ready; sleep 1000";
    let world = World::new(&script, code);
    world.ready().await;
    let guard = world.guard().unwrap();
    world.wait_for("no zombies", || zombies_of(guard) == 0).await;
}

fn zombies_of(parent: Pid) -> usize {
    let stats = fs::read_dir("/proc").unwrap().flatten();
    let stats = stats.filter_map(|entry| fs::read_to_string(entry.path().join("stat")).ok());
    let zombie = format!(") Z {} ", parent.as_raw_pid());
    stats.filter(|stat| stat.contains(&zombie)).count()
}

async fn what_ran_before_is_spared(script: Script) {
    let mut before = Command::new("sh");
    before
        .args([
            "-c",
            "sleep 1000 & echo $! > before; exec \"$0\" parent sh -c ': > ready; sleep 1000'",
        ])
        .arg(env::current_exe().unwrap());
    let mut world = World::of(&script, before, |_| {});
    world.ready().await;
    let before = Pid::from_raw(world.read("before").trim().parse().unwrap()).unwrap();
    kill_process(world.guard().unwrap(), Signal::KILL).unwrap();
    let limit = world.now() + LONG;
    let status = loop {
        if let Some(status) = world.parent.try_wait().unwrap() {
            break status;
        }
        assert!(world.now() < limit, "the parent did not end; left are {:?}", world.left());
        world.pause().await;
    };
    assert_eq!(status.code(), Some(125));
    assert!(test_kill_process(before).is_ok());
    assert_eq!(world.left().len(), 1);
}

async fn a_cgroup_is_made_and_removed(script: Script) {
    let mut world = unruly(&script).await;
    let cgroup = world.cgroup().unwrap();
    let members = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap();
    assert!(members.lines().count() >= MANY);
    let guard = world.guard().unwrap().as_raw_pid().to_string();
    assert!(!members.lines().any(|pid| pid == guard));
    world.signal_parent(Signal::USR1);
    assert_eq!(world.ends().await, 123);
    assert!(!cgroup.exists());

    let world = unruly(&Script { cgroup: false, ..script }).await;
    assert_eq!(world.cgroup(), None);
}

async fn what_was_left_by_both_is_ended_by_the_next(script: Script) {
    let mut world = unruly(&script).await;
    let cgroup = world.cgroup().unwrap();
    let guard = world.guard().unwrap();
    // Stopped first, so that neither can do anything about the death of the other.
    world.signal_parent(Signal::STOP);
    kill_process(guard, Signal::STOP).unwrap();
    world.kill_parent().await;
    kill_process(guard, Signal::KILL).unwrap();
    end_leftovers(&*world.env.clock).await;
    world.nobody_is_left(LONG).await;
    world.wait_for("the cgroup is removed", || !cgroup.exists()).await;

    // What has a living guard is left alone.
    let world = unruly(&script).await;
    end_leftovers(&*world.env.clock).await;
    assert!(world.children() >= MANY);
    assert!(world.guard().is_some());
}

async fn a_disarmed_child_keeps_the_cgroups_that_it_has_made(script: Script) {
    let mut world = unruly(&script).await;
    let cgroup = world.cgroup().unwrap();
    let members = || fs::read_to_string(cgroup.join("cgroup.procs")).unwrap();
    let own = cgroup.join("own");
    fs::create_dir(&own).unwrap();
    for pid in members().lines() {
        fs::write(own.join("cgroup.procs"), pid).unwrap();
    }
    world.signal_parent(Signal::USR2);
    let released = || fs::metadata(&cgroup).unwrap().permissions().mode() & 0o1000 != 0;
    world.wait_for("it is released", released).await;
    world.kill_parent().await;
    kill_process(world.guard().unwrap(), Signal::KILL).unwrap();
    end_leftovers(&*world.env.clock).await;
    assert!(world.children() >= MANY);

    fs::write(cgroup.join("cgroup.kill"), "1").unwrap();
    let is_empty =
        || fs::read_to_string(cgroup.join("cgroup.events")).unwrap().contains("populated 0");
    world.wait_for("nobody is left in it", is_empty).await;
    end_leftovers(&*world.env.clock).await;
    assert!(!cgroup.exists());
}

async fn a_disarmed_child_is_no_leftover(script: Script) {
    let mut world = unruly(&script).await;
    let cgroup = world.cgroup().unwrap();
    world.signal_parent(Signal::USR2);
    world.wait_for("the cgroup is removed", || !cgroup.exists()).await;
    world.kill_parent().await;
    kill_process(world.guard().unwrap(), Signal::KILL).unwrap();
    end_leftovers(&*world.env.clock).await;
    assert!(world.children() >= MANY);
}
