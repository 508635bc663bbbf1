use std::fs;

use super::*;

fn config(json: &str) -> ClusterConfig {
    serde_json::from_str(json).unwrap()
}

/// With `text` in a file of this mode.
fn with_password_file(text: &str, mode: u32) -> (tempfile::TempDir, ClusterConfig) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("password");
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    let broker = Some("mqtt://127.0.0.1".parse().unwrap());
    (folder, ClusterConfig { broker, password_file: Some(path), ..ClusterConfig::default() })
}

#[test]
fn by_default_there_is_no_foreign_broker() {
    ClusterConfig::default().validate().unwrap();
    assert!(ClusterConfig::default().connection().unwrap().is_none());
    assert_eq!(config("{}"), ClusterConfig::default());
}

#[test]
fn what_does_not_fit_together_is_refused_by_key() {
    for (json, key, advice) in [
        (r#"{"user":"a"}"#, "user", "set cluster.broker"),
        (r#"{"client_key":"/x"}"#, "client_key", "set cluster.broker"),
        (r#"{"broker":"mqtt://a","ca_file":"/x"}"#, "ca_file", "mqtts://"),
        (r#"{"broker":"a","password":"x","password_file":"/x"}"#, "password_file", "excludes cluster.password"),
        (r#"{"broker":"a","client_certificate":"/x"}"#, "client_certificate", "client_key"),
        (r#"{"broker":"a","client_key":"/x"}"#, "client_key", "client_certificate"),
        (r#"{"broker":"a","user":""}"#, "user", "1 to 65535"),
        (r#"{"broker":"a","password":""}"#, "password", "1 to 65535"),
    ] {
        let error = config(json).validate().unwrap_err();
        assert_eq!(error.key, key, "{json}");
        assert!(error.problem.contains(advice), "{error}");
    }
    assert!(serde_json::from_str::<ClusterConfig>(r#"{"pasword":"x"}"#).is_err());
}

#[test]
fn login_and_default_user_reach_the_connection() {
    let login = |json: &str| {
        let connection = config(json).connection().unwrap().unwrap().with_default_user("pi-7");
        connection.options("x").credentials().map(|login| (login.username, login.password))
    };
    let pair = |user: &str, password: &str| Some((user.to_owned(), password.to_owned()));
    assert_eq!(login(r#"{"broker":"mqtt://a","user":"u","password":"p"}"#), pair("u", "p"));
    assert_eq!(login(r#"{"broker":"mqtt://a","password":"p"}"#), pair("pi-7", "p"));
    assert_eq!(login(r#"{"broker":"mqtt://a"}"#), None);
}

#[test]
fn a_password_file_is_read_without_its_line_end() {
    let (_folder, config) = with_password_file("pass word \n", 0o640);
    let options = config.connection().unwrap().unwrap().options("x");
    assert_eq!(options.credentials().unwrap().password, "pass word ");
}

#[test]
fn a_password_file_that_others_may_read_is_refused_with_the_remedy() {
    for mode in [0o604, 0o602, 0o777] {
        let (folder, config) = with_password_file("hunter2", mode);
        let error = config.connection().unwrap_err();
        let advice = format!("chmod 600 {}", folder.path().join("password").display());
        assert!(error.key == "password_file" && error.problem.contains(&advice), "{error}");
    }
    let (_folder, empty) = with_password_file("\n", 0o600);
    assert_eq!(empty.connection().unwrap_err().key, "password_file");
}

#[test]
fn files_that_cannot_be_used_are_named() {
    let missing = config(r#"{"broker":"a","ca_file":"/nowhere/ca.pem"}"#).connection().unwrap_err();
    assert!(missing.key == "ca_file" && missing.problem.contains("/nowhere/ca.pem"), "{missing}");
    let endless = config(r#"{"broker":"a","ca_file":"/dev/zero"}"#).connection().unwrap_err();
    assert!(endless.problem.contains("more than"), "{endless}");
    let empty = config(r#"{"broker":"a","ca_file":"/dev/null"}"#).connection().unwrap_err();
    assert!(empty.key == "ca_file" && empty.problem.contains("PEM"), "{empty}");
}

#[test]
fn a_password_is_not_shown() {
    let config = config(r#"{"broker":"a","password":"hunter2"}"#);
    assert!(!format!("{config:?}").contains("hunter2"));
}
