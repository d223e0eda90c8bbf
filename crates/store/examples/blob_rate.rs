//! Measures how fast blobs are made durable and read back; prints one JSON line.
#![expect(clippy::cast_precision_loss, reason = "a rate needs no more precision")]

use std::error::Error;
use std::io::Write as _;

use runtime::mono_now;
use store::blobs::{BlobLimits, Blobs};
use tokio::io::AsyncReadExt as _;

const SMALL_PUTS: u32 = 1_000;
const SMALL_BYTES: usize = 4 << 10;
const LARGE_BYTES: u64 = 256 << 20;

async fn measure(blobs: &Blobs) -> Result<(f64, f64, f64), Box<dyn Error>> {
    let start = mono_now();
    for n in 0..SMALL_PUTS {
        let mut content = vec![0; SMALL_BYTES];
        content[..4].copy_from_slice(&n.to_be_bytes());
        blobs.put(&content[..]).await?;
    }
    let small = f64::from(SMALL_PUTS) / start.elapsed().as_secs_f64();
    let mib = (LARGE_BYTES >> 20) as f64;
    let start = mono_now();
    let stored = blobs.put(tokio::io::repeat(7).take(LARGE_BYTES)).await?;
    let large = mib / start.elapsed().as_secs_f64();
    let start = mono_now();
    tokio::io::copy(&mut blobs.get(stored.digest).await?, &mut tokio::io::sink()).await?;
    Ok((small, large, mib / start.elapsed().as_secs_f64()))
}

fn main() -> Result<(), Box<dyn Error>> {
    let dir = tempfile::tempdir_in(".")?;
    let blobs = Blobs::open(dir.path(), BlobLimits::default())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let (small, large, read) = runtime.block_on(measure(&blobs))?;
    writeln!(
        std::io::stdout(),
        "{{\"puts_of_4_kib_per_s\":{small:.0},\"put_mib_per_s\":{large:.0},\"get_mib_per_s\":{read:.0}}}"
    )?;
    Ok(())
}
