//! Arguments of what shows lines: logs and the audit log.

use std::time::Duration;

use clap::Args;
use model::Name;

use super::{AppArgs, AppName};

#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    /// The app, as in `web` or `PROJECT/web`; else as with `--app`
    #[arg(value_name = "APP")]
    pub(crate) name: Option<AppName>,
    #[command(flatten)]
    pub(crate) app: AppArgs,
    /// Go on with lines that come later
    #[arg(long, short)]
    pub(crate) follow: bool,
    /// Only this instance, as in `web.2`, or `2` of each process
    #[arg(long)]
    pub(crate) instance: Option<String>,
    /// Only this process
    #[arg(long)]
    pub(crate) process: Option<Name>,
    #[command(flatten)]
    pub(crate) lines: LineArgs,
}

/// Which lines of a log.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct LineArgs {
    /// Only the last so many lines, of all instances together; 100 unless `--since` is given
    #[arg(long, short = 'n')]
    pub(crate) tail: Option<u64>,
    /// Only what was written since then, as in `90s`, `10m`, `2h` or `1d`
    #[arg(long, value_name = "DURATION", value_parser = span)]
    pub(crate) since: Option<Duration>,
    /// Show when each line was written
    #[arg(long, short)]
    pub(crate) times: bool,
}

#[derive(Debug, Args)]
pub(crate) struct AuditArgs {
    /// How many lines at most, 1000 at most
    #[arg(long, short = 'n', default_value_t = 50)]
    pub(crate) limit: u32,
    /// Only lines before this one
    #[arg(long, value_name = "LINE")]
    pub(crate) before: Option<u64>,
}

/// A duration in one unit, as in `90s`; seconds when it has none.
fn span(text: &str) -> Result<Duration, String> {
    let wanted = || format!("`{text}` is no duration: 90s, 10m, 2h or 1d is wanted");
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits.parse().map_err(|_| wanted())?;
    let unit = match text.trim_start_matches(|c: char| c.is_ascii_digit()) {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return Err(wanted()),
    };
    Ok(Duration::from_secs(number.saturating_mul(unit)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_one_unit() {
        let secs = |text| span(text).map(|span| span.as_secs()).ok();
        let table = [("90", 90), ("90s", 90), ("10m", 600), ("2h", 7_200), ("1d", 86_400)];
        assert!(table.iter().all(|(text, wanted)| secs(text) == Some(*wanted)));
        for bad in ["", "m", "1h30m", "-1s", "1.5h", "10min", "s10"] {
            assert!(span(bad).is_err_and(|said| said.contains("2h or 1d is wanted")), "{bad}");
        }
    }
}
