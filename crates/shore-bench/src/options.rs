//! What is measured, as told on the command line.

/// How large the cluster is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Options {
    pub(crate) cells: u32,
    pub(crate) instances: u32,
    pub(crate) seed: u64,
    /// Whether some apps ask for certain cells; absent where that cannot be asked for.
    pub(crate) constraints: Option<bool>,
}

impl Options {
    /// Reads `--cells C --instances N --seed S [--constraints]`; what is not told is as in `usual`.
    pub(crate) fn read(usual: Self) -> Result<Self, String> {
        let mut options = usual;
        let mut words = std::env::args().skip(2);
        while let Some(word) = words.next() {
            if word == "--constraints" && options.constraints.is_some() {
                options.constraints = Some(true);
                continue;
            }
            let value = words.next().ok_or_else(|| format!("{word} wants a number"))?;
            let number: u64 = value.parse().map_err(|_| format!("{word} wants a number"))?;
            let small = || u32::try_from(number).map_err(|_| format!("{word} is too large"));
            match word.as_str() {
                "--cells" => options.cells = small()?.max(1),
                "--instances" => options.instances = small()?.max(1),
                "--seed" => options.seed = number,
                _ => {
                    return Err(format!(
                        "{word} is not known: --cells, --instances and --seed are"
                    ));
                }
            }
        }
        Ok(options)
    }
}
