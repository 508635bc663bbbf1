//! Which master, and by what: flags win over the environment, which wins over the configuration.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::anyhow;
use rpicluster_client::{BrokerAddress, ClusterConfig};
use rpicluster_protocol::JoinToken;
use rpicluster_slave::Access;

use crate::cli::SlaveArgs;
use crate::exit::{Exit, Failure};

const MASTER: &str = "RPICLUSTER_MASTER";
const MASTER_FILE: &str = "RPICLUSTER_MASTER_FILE";
const TOKEN: &str = "RPICLUSTER_TOKEN";
const TOKEN_FILE: &str = "RPICLUSTER_TOKEN_FILE";
/// The folder of systemd's credentials for a service (systemd.exec(5)). The unit that `install` writes puts `token` there,
/// empty where there is none.
const CREDENTIALS: &str = "CREDENTIALS_DIRECTORY";

/// No address and no token is longer; a named device must not fill the memory.
const FILE_BYTES_MAX: u64 = 4096;

/// How a slave gets in.
pub(super) struct WayIn {
    pub(super) master: BrokerAddress,
    pub(super) access: Access,
    /// Why the token cannot be used. A service keeps its settings when the slave has joined, and the token's file may be gone.
    pub(super) bad_token: Option<Failure>,
}

impl WayIn {
    /// `configured` is the master of the configuration; `environment` tells the value of a variable.
    pub(super) fn find(
        cluster: &ClusterConfig,
        configured: BrokerAddress,
        args: &SlaveArgs,
        environment: impl Fn(&str) -> Option<String>,
    ) -> Result<WayIn, Failure> {
        // Empty ones count as not set, as for all settings.
        let environment = |name: &str| environment(name).filter(|value| !value.is_empty());
        let account = cluster.connection().map_err(|error| Failure::new(Exit::Configuration, error.to_string()))?;
        if let Some(account) = account {
            let flag = args.master.is_some() || args.token.is_some() || args.token_file.is_some();
            let variable =
                [MASTER, MASTER_FILE, TOKEN, TOKEN_FILE].into_iter().find(|name| environment(name).is_some());
            if flag || variable.is_some() {
                let given = variable.unwrap_or("--master or a token");
                let problem = format!("cluster.broker is set, so a slave joins no master: leave out {given}");
                return Err(Failure::new(Exit::Usage, problem));
            }
            return Ok(WayIn { master: configured, access: Access::Account(account), bad_token: None });
        }
        let master = match &args.master {
            Some(master) => master.clone(),
            None => master(&environment)?.unwrap_or(configured),
        };
        let (token, bad_token) = match token(args, &environment) {
            Ok(token) => (token, None),
            Err(failure) => (None, Some(failure)),
        };
        Ok(WayIn { master, access: Access::Identity { token }, bad_token })
    }
}

fn master(environment: &impl Fn(&str) -> Option<String>) -> Result<Option<BrokerAddress>, Failure> {
    let (origin, text) = match (environment(MASTER), environment(MASTER_FILE)) {
        (Some(text), _) => (format!("environment variable {MASTER}"), text),
        (None, Some(path)) => (path.clone(), read(Path::new(&path))?),
        (None, None) => return Ok(None),
    };
    text.parse().map(Some).map_err(|error| Failure::new(Exit::Configuration, format!("{origin}: {error}")))
}

fn token(args: &SlaveArgs, environment: &impl Fn(&str) -> Option<String>) -> Result<Option<JoinToken>, Failure> {
    let text = match (&args.token, &args.token_file) {
        (Some(token), _) => token.0.trim().to_owned(),
        (None, Some(path)) => read(path)?,
        (None, None) => match (environment(TOKEN), environment(TOKEN_FILE), environment(CREDENTIALS)) {
            (Some(token), ..) => token.trim().to_owned(),
            (None, Some(path), _) => read(Path::new(&path))?,
            (None, None, Some(folder)) => match read(&Path::new(&folder).join("token"))? {
                empty if empty.is_empty() => return Ok(None),
                token => token,
            },
            (None, None, None) => return Ok(None),
        },
    };
    text.parse().map(Some).map_err(|error| Failure::new(Exit::Configuration, format!("token: {error}")))
}

/// What a file holds, without white space around it.
fn read(path: &Path) -> Result<String, Failure> {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text));
    let problem = match read {
        Ok(size) if size as u64 <= FILE_BYTES_MAX => return Ok(text.trim().to_owned()),
        Ok(_) => anyhow!("it has more than {FILE_BYTES_MAX} bytes"),
        Err(error) => error.into(),
    };
    Err(Failure::new(Exit::Configuration, format!("cannot read {}: {problem}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use clap::Parser;
    use std::fs;

    fn token_text(secret: u8) -> String {
        JoinToken { ca_fingerprint: [7; 32], secret: [secret; 16] }.to_string()
    }

    fn find(cluster: &ClusterConfig, flags: &[&str], variables: &[(&str, &str)]) -> Result<WayIn, Failure> {
        let Command::Slave(args) = Cli::parse_from([&["rpicluster", "slave"], flags].concat()).command else {
            panic!()
        };
        let variable = |name: &str| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        WayIn::find(cluster, "configured".parse().unwrap(), &args, variable)
    }

    /// The host, and the token's text.
    fn found(flags: &[&str], variables: &[(&str, &str)]) -> (String, Option<String>) {
        let way_in = find(&ClusterConfig::default(), flags, variables).unwrap();
        let Access::Identity { token } = way_in.access else { panic!() };
        assert!(way_in.bad_token.is_none());
        (way_in.master.host().to_owned(), token.map(|token| token.to_string()))
    }

    #[test]
    fn flags_win_over_the_environment_and_that_over_the_configuration() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::write(&path, format!("{text}\n")).unwrap();
            path.display().to_string()
        };
        let [flag, flag_file, variable, variable_file] = [1, 2, 3, 4].map(token_text);
        let (flag_path, variable_path) = (file("flag", &flag_file), file("variable", &variable_file));
        let master_path = file("master", "from-file");

        assert_eq!(found(&[], &[]), ("configured".to_owned(), None));
        assert_eq!(found(&[], &[(MASTER, ""), (TOKEN, ""), (TOKEN_FILE, "")]), ("configured".to_owned(), None));
        let credentials = folder.path().display().to_string();
        for (text, token) in [("", None), (&*variable, Some(variable.clone()))] {
            file("token", text);
            assert_eq!(found(&[], &[(CREDENTIALS, &*credentials)]).1, token);
        }
        let mut variables =
            vec![(CREDENTIALS, &*credentials), (MASTER_FILE, &*master_path), (TOKEN_FILE, &*variable_path)];
        assert_eq!(found(&[], &variables), ("from-file".to_owned(), Some(variable_file)));
        variables.extend([(MASTER, "from-variable"), (TOKEN, &*variable)]);
        assert_eq!(found(&[], &variables), ("from-variable".to_owned(), Some(variable.clone())));
        let flags = ["--master", "from-flag", "--token-file", &flag_path];
        assert_eq!(found(&flags, &variables), ("from-flag".to_owned(), Some(flag_file)));
        assert_eq!(found(&["--token", &flag], &variables).1, Some(flag));
    }

    #[test]
    fn a_token_that_cannot_be_used_is_named_and_not_repeated() {
        let bad = |flags: &[&str]| {
            let failure = find(&ClusterConfig::default(), flags, &[]).unwrap().bad_token.unwrap();
            assert_eq!(failure.exit, Exit::Configuration);
            failure.message
        };
        let nearly = &token_text(1)[..70];
        assert!(bad(&["--token", nearly]).contains("this is no token") && !bad(&["--token", nearly]).contains(nearly));
        assert!(bad(&["--token-file", "/nowhere/token"]).contains("/nowhere/token"));
        assert!(bad(&["--token-file", "/dev/zero"]).contains("more than 4096 bytes"));
        let shown = format!("{:?}", Cli::parse_from(["rpicluster", "slave", "--token", nearly]));
        assert!(!shown.contains(nearly), "{shown}");
    }

    #[test]
    fn a_master_that_is_no_address_is_named_by_its_origin() {
        let failure = |variables| find(&ClusterConfig::default(), &[], variables).err().unwrap().message;
        assert!(failure(&[(MASTER, "a b")]).starts_with("environment variable RPICLUSTER_MASTER: \"a b\" is not"));
        assert!(failure(&[(MASTER_FILE, "/nowhere/master")]).contains("cannot read /nowhere/master"));
    }

    #[test]
    fn with_a_broker_of_ones_own_there_is_nothing_to_join() {
        let broker = Some("mqtt://broker".parse().unwrap());
        let cluster = ClusterConfig { broker, ..ClusterConfig::default() };
        assert!(matches!(find(&cluster, &[], &[]).unwrap().access, Access::Account(_)));
        for (flags, variables) in [(&["--master", "a"][..], &[][..]), (&["--token", "a"], &[]), (&[], &[(TOKEN, "a")])]
        {
            let failure = find(&cluster, flags, variables).err().unwrap();
            assert_eq!(failure.exit, Exit::Usage);
            assert!(failure.message.contains("cluster.broker is set"), "{failure}");
        }
    }
}
