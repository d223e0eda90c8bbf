//! What the kernel hands out to all processes of the machine: one container must not take it from
//! others, nor from the machine.

use std::process::Command;

use super::{Bench, Verdict, ensure};
use crate::driver::Isolation;
use crate::spec::{ProcessId, ProcessSpec};

/// Takes or uses kernel resources, as a program.
const PROGRAM: &str = include_str!("shares.py");
/// What counts for each user of the machine, however a container is limited.
const OF_A_USER: [&str; 2] = ["watches", "terminals"];
const LIMITED: [&str; 2] = ["signals", "queues"];

fn arguments<'a>(verb: &'a str, kinds: &[&'a str]) -> Vec<&'a str> {
    let mut arguments = vec!["python3", "-c", PROGRAM, verb];
    arguments.extend(kinds);
    arguments
}

pub(super) async fn the_kernel_has_enough_for_all(bench: Bench) -> Verdict {
    if bench.driver.capabilities().isolation == Isolation::None {
        return Ok(());
    }
    let greedy = bench.named("greedy").await?;
    bench.needs_python(&greedy).await?;
    // Where containers share the machine's users, only what processes are limited in is safe, and
    // only for the machine.
    let mut kinds = LIMITED.to_vec();
    kinds.extend(OF_A_USER.iter().filter(|_| !bench.shares_users()));
    let taking = arguments("take", &kinds);
    let taken = bench.first_line(&greedy, "take", &taking).await?;
    ensure!(taken.ends_with(" ready"), "what it took: {taken}");
    let counts = taken.split(' ').filter_map(|word| word.parse::<u32>().ok());
    ensure!(counts.clone().all(|count| (1..=512).contains(&count)), "what it took: {taken}");
    let using = arguments("use", &kinds);
    let machine = Command::new("python3").args(using.iter().skip(1)).output()?;
    let seen = String::from_utf8_lossy(&machine.stdout);
    ensure!(seen == "done\n", "the machine, after {taken}: {seen}");
    if !bench.shares_users() {
        let neighbour = bench.named("neighbour").await?;
        let spec = ProcessSpec::new(ProcessId::new("use")?, using);
        let (_, written) = bench.run(&neighbour, spec).await?;
        let (seen, told) = (written.text(), String::from_utf8_lossy(&written.stderr).into_owned());
        ensure!(seen == "done\n", "a neighbour, after {taken}: {seen} {told}");
    }
    Ok(())
}
