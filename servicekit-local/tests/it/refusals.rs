//! What a store must not be opened on, and what is left of it.

#[cfg(test)]
use std::fs;

use servicekit_core::{Env, Kind, store::Store as _};
use servicekit_local::Local;

use crate::common::{count, key, place, put, said};

#[tokio::test]
async fn a_newer_layout_is_refused_naming_both() {
    let (_folder, path) = place();
    drop(Local::open(&path, Env::system()).await.unwrap());
    let conn = rusqlite::Connection::open(&path).unwrap();
    conn.pragma_update(None, "user_version", 7).unwrap();
    drop(conn);
    let error = Local::open(&path, Env::system()).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unsupported);
    let message = error.to_string();
    assert!(message.contains("layout 7") && message.contains("up to 1"), "{message}");
}

#[tokio::test]
async fn what_is_not_a_store_of_ours_is_left_as_it_is() {
    let (folder, _) = place();
    let database = folder.path().join("database");
    let conn = rusqlite::Connection::open(&database).unwrap();
    conn.execute_batch("CREATE TABLE theirs (x); INSERT INTO theirs VALUES (1)").unwrap();
    drop(conn);
    let named = folder.path().join("named");
    let conn = rusqlite::Connection::open(&named).unwrap();
    conn.execute_batch("PRAGMA application_id = 42; CREATE TABLE theirs (x)").unwrap();
    drop(conn);
    let (short, text) = (folder.path().join("short"), folder.path().join("text"));
    fs::write(&short, "x").unwrap();
    fs::write(&text, "a text, and no database\n".repeat(1000)).unwrap();
    for path in [database, named, short, text] {
        let before = fs::read(&path).unwrap();
        let error = Local::open(&path, Env::system()).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid, "{}", said(&error));
        assert!(error.to_string().contains("not a store of servicekit"), "{error}");
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
        assert!(before == fs::read(&path).unwrap(), "{} was changed", path.display());
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 4, "nothing was put beside them");
}

#[tokio::test]
async fn an_empty_file_becomes_a_store() {
    let (_folder, path) = place();
    fs::write(&path, "").unwrap();
    let local = Local::open(&path, Env::system()).await.unwrap();
    local.put(&put(&key("a"), "")).await.unwrap();
    assert_eq!(count(&path, "PRAGMA user_version"), 1);
    assert_eq!(count(&path, "PRAGMA application_id"), i64::from(u32::from_be_bytes(*b"skit")));
}

#[tokio::test]
async fn a_folder_and_a_file_for_a_folder_are_no_stores() {
    let (folder, path) = place();
    let error = Local::open(folder.path(), Env::system()).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Invalid);
    assert!(error.to_string().contains("is a folder"), "{error}");
    fs::write(&path, "").unwrap();
    let error = Local::open(&path.join("servicekit.db"), Env::system()).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Invalid, "{error}");
}

#[tokio::test]
async fn many_that_open_a_new_file_at_once_share_one_store() {
    let (_folder, path) = place();
    let path = path.parent().unwrap().join("a/b/c/servicekit.db");
    let opened = (0..24).map(|i| {
        let path = path.clone();
        tokio::spawn(async move {
            let local = Local::open(&path, Env::system()).await.unwrap();
            local.put(&put(&key(&format!("k{i}")), "")).await.unwrap();
            local
        })
    });
    let mut handles = Vec::new();
    for local in opened.collect::<Vec<_>>() {
        handles.push(local.await.unwrap());
    }
    let records = handles[0].list(&[key("k0").group]).await.unwrap();
    assert_eq!(records.len(), 24);
}

#[tokio::test]
async fn a_link_leads_to_the_one_store() {
    let (folder, path) = place();
    let link = folder.path().join("link.db");
    let local = Local::open(&path, Env::system()).await.unwrap();
    std::os::unix::fs::symlink(&path, &link).unwrap();
    let linked = Local::open(&link, Env::system()).await.unwrap();
    assert_eq!(linked.path(), local.path());
    linked.put(&put(&key("a"), "")).await.unwrap();
    assert!(local.get(&key("a")).await.unwrap().is_some());
}
