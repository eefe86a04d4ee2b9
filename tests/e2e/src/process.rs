//! Programs run as a user would run them, each with a limit of time.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::timeout;

use crate::failure::Failure;
use crate::{Result, fail};

/// Longer than anything that is called here takes; what has to be waited for is waited for by looking again.
const LIMIT: Duration = Duration::from_secs(90);

/// What a program that ended has said.
#[derive(Debug)]
pub struct Said {
    /// Whether it succeeded.
    pub ok: bool,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

/// Runs a program to its end, whatever that is.
pub async fn run(program: &str, arguments: &[&str], input: Option<&str>) -> Result<Said> {
    let line = || format!("{} {}", program.rsplit('/').next().unwrap_or(program), arguments.join(" "));
    let mut command = Command::new(program);
    command.args(arguments).kill_on_drop(true).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
    let work = async {
        let mut child = command.spawn()?;
        if let (Some(mut stdin), Some(input)) = (child.stdin.take(), input) {
            stdin.write_all(input.as_bytes()).await?;
        }
        child.wait_with_output().await
    };
    let output = match timeout(LIMIT, work).await {
        Ok(Ok(output)) => output,
        Ok(Err(error)) => fail!("cannot run {}: {error}", line()),
        Err(_) => fail!("{} did not end within {LIMIT:?}", line()),
    };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(Said { ok: output.status.success(), out: text(&output.stdout), err: text(&output.stderr) })
}

/// Runs a program that must succeed, and gives its standard output.
pub async fn succeed(program: &str, arguments: &[&str], input: Option<&str>) -> Result<String> {
    let said = run(program, arguments, input).await?;
    if said.ok {
        return Ok(said.out);
    }
    let program = program.rsplit('/').next().unwrap_or(program);
    Err(Failure(format!("{program} {} failed: {}", arguments.join(" "), said.err.trim())))
}
