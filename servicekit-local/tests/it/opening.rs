//! Many real processes open one new file at the same moment. They are this test binary, started again.

#[cfg(test)]
use std::{
    env, fs,
    io::{self, BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use servicekit_core::{
    Clock as _, Env, Random,
    clock::{SystemClock, timeout},
    store::Store as _,
};
use servicekit_local::Local;

use crate::common::{self, key, place, put};

/// Set for those who were started to open what they are told.
const IS_OPENER: &str = "SERVICEKIT_TEST_IS_OPENER";
const OPENERS: usize = 40;
const AGAIN: usize = 5;
const LONG: Duration = Duration::from_secs(60);

#[test]
fn many_who_open_a_new_file_at_once_all_find_a_store() {
    let (folder, _) = place();
    let mut openers: Vec<_> = (0..OPENERS).map(|_| Opener::start()).collect();
    for round in 0..common::seeds(60).end {
        let path = folder.path().join(format!("{round}.db"));
        match round % 10 {
            0 => fs::write(&path, "").unwrap(),
            1 => restored(&path).unwrap(),
            _ => {}
        }
        openers.iter_mut().for_each(|opener| opener.open(&path));
        for opener in &openers {
            assert_eq!(opener.answer(), OPENED, "round {round}");
        }
        assert_eq!(common::count(&path, "SELECT count(*) FROM store"), 1);
        assert_eq!(common::count(&path, "SELECT count(*) FROM changes WHERE grp = ''"), 1);
    }
}

#[tokio::test]
async fn a_file_whose_makers_are_killed_half_way_is_made_by_the_next() {
    for seed in common::seeds(40) {
        let (_folder, path) = place();
        let random = Random::seeded(seed);
        let mut openers = [Opener::start(), Opener::start()];
        openers.iter_mut().for_each(|opener| opener.open(&path));
        // Making a store takes some milliseconds, and a disk that is slow to sync makes more of them.
        SystemClock.sleep(Duration::from_micros(random.below(8000))).await;
        drop(openers);
        let opening = timeout(&SystemClock, LONG, Local::open(&path, Env::system())).await;
        let local = opening.expect("it ends").unwrap_or_else(|error| panic!("{seed}: {error:?}"));
        local.put(&put(&key("a"), "")).await.unwrap();
        assert_eq!(common::count(&path, "SELECT count(*) FROM store"), 1, "seed {seed}");
    }
}

/// A store without a log, as `VACUUM INTO` makes it.
fn restored(path: &Path) -> rusqlite::Result<()> {
    let (_folder, original) = place();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    drop(runtime.block_on(Local::open(&original, Env::system())).unwrap());
    let conn = rusqlite::Connection::open(original)?;
    conn.execute("VACUUM INTO ?1", [path.to_str().unwrap()]).map(drop)
}

const OPENED: &str = "opened";

/// Not a test by itself: opens what it is told to, and says how that went.
#[tokio::test]
async fn opener() {
    if env::var_os(IS_OPENER).is_none() {
        return;
    }
    println!("\nready");
    for path in io::stdin().lines() {
        println!("{}", open_again_and_again(Path::new(&path.unwrap())).await);
    }
}

/// So that some look at the file in the very moment in which it becomes a store.
async fn open_again_and_again(path: &Path) -> String {
    for _ in 0..AGAIN {
        if let Err(error) = Local::open(path, Env::system()).await {
            return format!("{error:?}");
        }
    }
    OPENED.into()
}

/// A process that opens files; dropping it kills it.
struct Opener {
    child: Child,
    said: mpsc::Receiver<String>,
}

impl Opener {
    fn start() -> Self {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "opening::opener", "--nocapture"])
            .env(IS_OPENER, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (tell, said) = mpsc::channel();
        thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| tell.send(line)));
        let opener = Self { child, said };
        // What comes before is the test harness's.
        while opener.answer() != "ready" {}
        opener
    }

    fn open(&mut self, path: &Path) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{}", path.display()).unwrap();
    }

    fn answer(&self) -> String {
        self.said.recv_timeout(LONG).expect("an answer in time")
    }
}

impl Drop for Opener {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
