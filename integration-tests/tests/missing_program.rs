//! A machine that lacks a program: whoever waits hears which, and what was asked for is done once it is there.
use custody_testkit::{Deployment, database_tools, target_program};
use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _},
    os::unix::fs::symlink,
    process::{Command, Stdio},
};

#[test]
fn a_cluster_waits_for_a_program_says_which_and_is_made() {
    database_tools().expect("scripts/test installs what this needs");
    let programs = tempfile::tempdir().unwrap();
    let places = ["bin", "sbin"].map(|name| programs.path().join(name));
    places.iter().for_each(|place| fs::create_dir(place).unwrap());
    let path = std::env::join_paths(&places).unwrap().into_string().unwrap();
    let deployment = Deployment::start_with_environment(&[], &[("PATH".to_owned(), path)]).unwrap();
    let mut making = Command::new("timeout")
        .arg("60")
        .arg(target_program("custody"))
        .arg("--dir")
        .arg(deployment.dir())
        .args(["cluster", "create", "small", "--workers", "0", "--size-mib", "512"])
        .env("CUSTODY_DBA_PASSWORD", "test-Password-1")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(making.stderr.take().unwrap()).lines().map(Result::unwrap);
    let why = said.find(|line| line.contains("is not installed")).expect("it says what it waits for");
    assert!(why.contains("making PostgreSQL of coordinator: `nbd"), "{why}");
    for place in &places {
        fs::remove_dir(place).unwrap();
        symlink(std::path::Path::new("/usr").join(place.file_name().unwrap()), place).unwrap();
    }
    said.for_each(drop);
    let mut shown = String::new();
    making.stdout.take().unwrap().read_to_string(&mut shown).unwrap();
    assert!(making.wait().unwrap().success(), "{shown}");
    let cluster = deployment.run(&["cluster", "get", "clusters/small"]);
    let endpoint = cluster.pointer("/nodes/0/endpoint").and_then(|e| e.as_str()).unwrap();
    assert_eq!(deployment.sql(endpoint, "SELECT 1").unwrap(), "1");
}
