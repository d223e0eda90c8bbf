//! What an agent or supervisor and the first process of a container say to each other.
//!
//! One connection starts one process. The request is a list of texts, and descriptors come with
//! its first byte. Answers have a fixed size; the last is the wait status alone, then the
//! connection ends when nothing the process left behind runs any more.

/// Where the first process listens, in the container.
pub(crate) const SOCKET: &str = "/.longshore/run/init";
/// Where it is itself.
pub(crate) const PROGRAM: &str = "/.longshore/init";
/// The argument that makes the program start one process.
pub(crate) const LAUNCH: &str = "launch";
/// How many bytes tell how long a request is.
pub(crate) const LENGTH_BYTES: usize = 4;
/// The longest request.
pub(crate) const MAX_REQUEST_BYTES: usize = 4 << 20;
/// The size of an answer.
pub(crate) const ANSWER_BYTES: usize = 5;
/// What the asker says when it has written down what runs; nothing is reaped before.
pub(crate) const NOTED: u8 = b'N';

/// A process to start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[cfg_attr(not(alone), derive(serde::Serialize, serde::Deserialize))]
pub(crate) struct Order {
    /// Its working directory, made when missing.
    pub(crate) dir: String,
    /// User and group.
    pub(crate) user: Option<(u32, u32)>,
    /// Columns and rows of its terminal, if it gets one.
    pub(crate) terminal: Option<(u16, u16)>,
    /// Numbers of resources with soft and hard limit.
    pub(crate) limits: Vec<(u32, u64, u64)>,
    /// Program and arguments.
    pub(crate) argv: Vec<String>,
    /// Its environment, as `NAME=VALUE`.
    pub(crate) env: Vec<String>,
}

/// What became of an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Sent by the new process itself, so that the system tells who it is.
    Here,
    /// The program runs.
    Runs,
    /// It does not, for this reason.
    Failed(Fault, i32),
}

/// Why a program does not run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// There is no such program.
    Missing,
    /// It may not be executed.
    Denied,
    /// It is no program.
    Format,
    /// The working directory cannot be entered.
    Directory,
    /// There are too many processes, or a limit cannot be set.
    Limits,
    /// The request could not be understood.
    Request,
    /// What the number says.
    Other,
}

const FAULTS: [Fault; 7] = [
    Fault::Missing,
    Fault::Denied,
    Fault::Format,
    Fault::Directory,
    Fault::Limits,
    Fault::Request,
    Fault::Other,
];

impl Answer {
    /// The answer as it is sent.
    pub(crate) fn to_bytes(self) -> [u8; ANSWER_BYTES] {
        let (tag, number) = match self {
            Self::Here => (b'H', 0),
            Self::Runs => (b'R', 0),
            Self::Failed(fault, number) => {
                let at = FAULTS.iter().position(|known| *known == fault).unwrap_or_default();
                (u8::try_from(at).unwrap_or_default(), number)
            }
        };
        let [a, b, c, d] = number.to_le_bytes();
        [tag, a, b, c, d]
    }

    /// Reads an answer; `None` when it is not one.
    pub(crate) fn from_bytes([tag, a, b, c, d]: [u8; ANSWER_BYTES]) -> Option<Self> {
        match tag {
            b'H' => Some(Self::Here),
            b'R' => Some(Self::Runs),
            at => {
                let fault = FAULTS.get(usize::from(at))?;
                Some(Self::Failed(*fault, i32::from_le_bytes([a, b, c, d])))
            }
        }
    }
}

impl Order {
    /// The order as it is sent, with its length in front.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let pair = |pair: Option<(u32, u32)>| {
            pair.map_or_else(String::new, |(first, second)| format!("{first} {second}"))
        };
        let limits: Vec<String> =
            self.limits.iter().map(|(kind, soft, hard)| format!("{kind} {soft} {hard}")).collect();
        let terminal = self.terminal.map(|(columns, rows)| (columns.into(), rows.into()));
        let head = [
            self.dir.clone(),
            pair(self.user),
            pair(terminal),
            limits.join(","),
            self.argv.len().to_string(),
        ];
        let mut bytes = vec![0; LENGTH_BYTES];
        for text in head.iter().chain(&self.argv).chain(&self.env) {
            bytes.extend_from_slice(text.as_bytes());
            bytes.push(0);
        }
        let length = u32::try_from(bytes.len() - LENGTH_BYTES).unwrap_or(u32::MAX);
        bytes.splice(..LENGTH_BYTES, length.to_le_bytes());
        bytes
    }

    /// Reads an order without the length in front; `None` when it is not one.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?.strip_suffix('\0')?;
        let mut texts = text.split('\0');
        let dir = texts.next()?.to_owned();
        let user = pair(texts.next()?).ok()?;
        let terminal = pair(texts.next()?).ok()?;
        let limits = texts.next()?.split(',').filter(|text| !text.is_empty());
        let limits = limits.map(|text| numbers(text)?.try_into().ok());
        let limits: Option<Vec<[u64; 3]>> = limits.collect();
        let count = texts.next()?.parse().ok()?;
        let argv: Vec<String> = texts.by_ref().take(count).map(str::to_owned).collect();
        let limits =
            limits?.into_iter().map(|[kind, soft, hard]| Some((kind.try_into().ok()?, soft, hard)));
        let limits: Option<Vec<(u32, u64, u64)>> = limits.collect();
        let whole = argv.len() == count && count > 0;
        let env = texts.map(str::to_owned).collect();
        Some(Self { dir, user, terminal, limits: limits?, argv, env }).filter(|_| whole)
    }
}

/// Two numbers, or none.
fn pair<T: TryFrom<u64>>(text: &str) -> Result<Option<(T, T)>, Unreadable> {
    let numbers = numbers(text).ok_or(Unreadable)?;
    if numbers.is_empty() {
        return Ok(None);
    }
    let [first, second]: [u64; 2] = numbers.try_into().map_err(|_| Unreadable)?;
    let number = |number: u64| T::try_from(number).map_err(|_| Unreadable);
    Ok(Some((number(first)?, number(second)?)))
}

/// A text that is not what it should be.
struct Unreadable;

fn numbers(text: &str) -> Option<Vec<u64>> {
    text.split(' ').filter(|part| !part.is_empty()).map(|part| part.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_and_answers_come_back() {
        let order = Order {
            dir: "/a b".to_owned(),
            user: Some((7, 8)),
            terminal: Some((80, 24)),
            limits: vec![(7, 64, u64::MAX), (4, 0, 0)],
            argv: vec!["printf".to_owned(), String::new(), "x\ny".to_owned()],
            env: vec!["A=".to_owned(), "B=c d".to_owned()],
        };
        for order in [order, Order { argv: vec!["a".to_owned()], ..Order::default() }] {
            let bytes = order.to_bytes();
            let (length, text) = bytes.split_at(LENGTH_BYTES);
            let told = u32::try_from(text.len()).expect("it is short");
            assert_eq!(length, told.to_le_bytes());
            assert_eq!(Order::from_bytes(text), Some(order));
        }
        assert_eq!(Order::from_bytes(b""), None);
        assert_eq!(Order::from_bytes(b"/\0\0\0\x001\0"), None);
        for fault in FAULTS {
            let answer = Answer::Failed(fault, -5);
            assert_eq!(Answer::from_bytes(answer.to_bytes()), Some(answer));
        }
        assert_eq!(Answer::from_bytes(*b"Rabcd"), Some(Answer::Runs));
        assert_eq!(Answer::from_bytes(*b"zabcd"), None);
    }
}
