//! A command of the operator's, run once.

use std::{
    fs::File,
    io::{self, Read as _, Seek as _, Write as _},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use tokio::{process, time::timeout};
use tracing::{debug, info};

use crate::{backend::BackendError, values::shorten};

/// How long one may take. The peers after it wait so long.
const PATIENCE: Duration = Duration::from_secs(60);
/// Of what it says, so much is read.
const MOST_OUTPUT: u64 = 64 << 10;
/// What a shell makes something of, besides variables.
const SYNTAX: &[char] = &[
    '|', '&', ';', '<', '>', '(', ')', '`', '\'', '"', '\\', '*', '?', '[', ']', '#', '~', '=', '{', '}',
    '\n', '!',
];

/// A command of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Command {
    /// Its option: `SubnetAddCommand`.
    pub(super) option: &'static str,
    /// As it is written there.
    pub(super) text: String,
    /// Run by a shell, or as a program and its words; `None` for what it looks like.
    pub(super) shell: Option<bool>,
}

/// How it is called.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Call {
    /// `sh -c`, as by upstream up to v0.28.1.
    Shell,
    /// A program and its words, with their variables replaced, as by upstream since.
    Words(Vec<String>),
}

impl Command {
    /// A text that no shell would make more of than words and variables means the same both ways, and needs no shell.
    fn call(&self, variable: impl Fn(&str) -> Option<String>) -> Call {
        let whole = self.text.replace("${", "");
        let is_plain = !whole.replace('}', "").contains(SYNTAX) && !self.text.contains("$(");
        match self.shell.unwrap_or(!is_plain) {
            true => Call::Shell,
            false => Call::Words(self.text.split_whitespace().map(|word| expand(word, &variable)).collect()),
        }
    }

    /// Runs it with these variables and this standard input, and returns its standard output, trimmed.
    ///
    /// # Errors
    /// It cannot be run, takes too long, or ends with anything but 0.
    pub(super) async fn run(
        &self,
        variables: &[(&'static str, String)],
        input: &str,
    ) -> Result<String, BackendError> {
        let failed = |what: String| {
            BackendError::Other(format!("{} ({}) {what}", self.option, shorten(&self.text, 200)))
        };
        let variable = |name: &str| {
            let own = variables.iter().find(|(own, _)| *own == name).map(|(_, value)| value.clone());
            own.or_else(|| std::env::var(name).ok())
        };
        let mut command = match self.call(variable) {
            Call::Shell => {
                let mut shell = process::Command::new("sh");
                shell.args(["-c", &self.text]);
                shell
            }
            Call::Words(words) => {
                let Some((program, words)) = words.split_first() else { return Ok(String::new()) };
                let mut command = process::Command::new(program);
                command.args(words);
                command
            }
        };
        // Files, not pipes: what goes on in the background would keep those open.
        let files = || -> io::Result<[File; 3]> {
            let [mut stdin, stdout, stderr] =
                [tempfile::tempfile()?, tempfile::tempfile()?, tempfile::tempfile()?];
            stdin.write_all(input.as_bytes())?;
            stdin.write_all(b"\n")?;
            stdin.rewind()?;
            Ok([stdin, stdout, stderr])
        };
        let [stdin, stdout, stderr] =
            files().map_err(|error| failed(format!("cannot be given files: {error}")))?;
        let beside = |file: &File| file.try_clone().map(Stdio::from);
        let (out, err) = beside(&stdout)
            .and_then(|out| Ok((out, beside(&stderr)?)))
            .map_err(|error| failed(format!("cannot be given files: {error}")))?;
        command.envs(variables.iter().map(|(name, value)| (name, value)));
        command.stdin(stdin).stdout(out).stderr(err).kill_on_drop(true);
        let ended = timeout(PATIENCE, command.status()).await;
        let (stdout, stderr) = (read(stdout), read(stderr));
        let said = [stdout.as_str(), stderr.as_str()].map(|text| shorten(text, 2000)).join(" ");
        match ended {
            Err(_) => {
                Err(failed(format!("has not ended within {PATIENCE:?}, and was killed; it said: {said}")))
            }
            Ok(Err(error)) => Err(failed(format!("cannot be run: {error}"))),
            Ok(Ok(status)) if !status.success() => Err(failed(format!("{}; it said: {said}", how(status)))),
            Ok(Ok(_)) => {
                match said.trim().is_empty() {
                    true => debug!(command = self.text, option = self.option, "ran a command"),
                    false => info!(
                        command = self.text,
                        option = self.option,
                        output = said.trim(),
                        "ran a command"
                    ),
                }
                Ok(stdout.trim().to_owned())
            }
        }
    }
}

fn how(status: ExitStatus) -> String {
    match status.code() {
        Some(code) => format!("ended with exit status {code}"),
        None => format!("was ended: {status}"),
    }
}

fn read(mut file: File) -> String {
    let mut bytes = Vec::new();
    // What cannot be read has not been said.
    let _ = file.rewind().and_then(|()| file.take(MOST_OUTPUT).read_to_end(&mut bytes));
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Replaces `$NAME` and `${NAME}` in a word; by nothing where there is no such variable.
fn expand(word: &str, variable: impl Fn(&str) -> Option<String>) -> String {
    let mut parts = word.split('$');
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let (name, rest) = match part.strip_prefix('{').and_then(|part| part.split_once('}')) {
            Some((name, rest)) => (name, rest),
            None => part.split_at(part.find(|c| !is_name(c)).unwrap_or(part.len())),
        };
        if name.is_empty() {
            text.push('$');
        }
        text.push_str(&variable(name).unwrap_or_default());
        text.push_str(rest);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(text: &str, shell: Option<bool>) -> Command {
        Command { option: "SubnetAddCommand", text: text.to_owned(), shell }
    }

    fn variables() -> Vec<(&'static str, String)> {
        vec![("SUBNET", "10.244.2.0/24".to_owned()), ("PUBLIC_IP", "192.0.2.2".to_owned())]
    }

    #[test]
    fn a_shell_is_called_for_what_only_a_shell_understands() {
        let call = |text: &str| command(text, None).call(|name| Some(format!("<{name}>")));
        let words = |words: &[&str]| Call::Words(words.iter().map(|word| (*word).to_owned()).collect());
        assert_eq!(
            call("ip route add $SUBNET via ${PUBLIC_IP} dev eth0"),
            words(&["ip", "route", "add", "<SUBNET>", "via", "<PUBLIC_IP>", "dev", "eth0"])
        );
        assert_eq!(call("echo a$ $1b"), words(&["echo", "a$<>", "<1b>"]));
        for text in
            ["echo $(id)", "a; b", "cat > /tmp/x", "FOO=1 x", "echo \"$SUBNET\"", "if true\nthen x\nfi"]
        {
            assert_eq!(call(text), Call::Shell, "{text}");
        }
        assert_eq!(command("a > b", Some(false)).call(|_| None), words(&["a", ">", "b"]));
        assert_eq!(command("a b", Some(true)).call(|_| None), Call::Shell);
    }

    #[tokio::test]
    async fn variables_input_and_output_go_both_ways() {
        let by_shell = command("read data; echo \" $SUBNET $PUBLIC_IP $data \"; echo warn >&2", None);
        assert_eq!(by_shell.run(&variables(), "key of 2").await.unwrap(), "10.244.2.0/24 192.0.2.2 key of 2");
        let by_words = command("echo $SUBNET ${PUBLIC_IP}", None);
        assert_eq!(by_words.run(&variables(), "").await.unwrap(), "10.244.2.0/24 192.0.2.2");
        assert_eq!(command("cat", None).run(&[], "data").await.unwrap(), "data");
        assert_eq!(command("  ", None).run(&[], "").await.unwrap(), "");
    }

    #[tokio::test]
    async fn what_fails_says_how_and_quotes_what_it_said() {
        let error = |text: &str| {
            let command = command(text, None);
            async move { command.run(&[], "").await.unwrap_err().to_string() }
        };
        let failed = error("echo half; echo done >&2; exit 3").await;
        assert!(failed.starts_with("SubnetAddCommand (echo half"), "{failed}");
        assert!(failed.contains("exit status 3; it said: half\n done"), "{failed}");
        assert!(error("/no/such/program x").await.contains("cannot be run: No such file"));
        assert!(error("kill -9 $$; true").await.contains("was ended: signal: 9"));
    }

    #[tokio::test]
    async fn what_goes_on_in_the_background_holds_up_nobody() {
        let started = std::time::Instant::now();
        assert_eq!(command("sleep 20 & echo started", None).run(&[], "").await.unwrap(), "started");
        assert!(started.elapsed() < Duration::from_secs(15));
    }
}
