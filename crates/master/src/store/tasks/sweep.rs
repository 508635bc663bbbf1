//! Rows that go to make room: output of ended jobs, and all of forgotten ones. A little with each transaction, so that none
//! takes long.

use rpicluster_protocol::JobId;
use rusqlite::{Transaction, params};

use super::{Swept, id, signed};

/// Rows that go in one transaction.
const ROWS_MAX: usize = 5_000;

/// Takes output of these jobs away, the oldest piece first, until so many bytes are free or it is enough for once.
pub(super) fn free_output(
    transaction: &Transaction<'_>,
    jobs: &[JobId],
    bytes: u64,
    swept: &mut Swept,
) -> Result<(), rusqlite::Error> {
    let (mut freed, mut rows_left) = (0, ROWS_MAX);
    for job in jobs {
        let (pieces, is_all) = oldest_pieces(transaction, *job, bytes - freed, rows_left)?;
        let mut delete = transaction.prepare("DELETE FROM output WHERE rowid = ?1")?;
        for (piece, length) in &pieces {
            delete.execute([piece])?;
            freed += length;
        }
        rows_left -= pieces.len();
        // When nothing is left of it, nothing is counted any more.
        let counted = if is_all { u64::MAX } else { pieces.iter().map(|(_, length)| length).sum() };
        let sql = "UPDATE jobs SET output_bytes = max(output_bytes - ?2, 0), output_dropped = 1 WHERE id = ?1";
        transaction.execute(sql, params![id(*job), signed(counted)])?;
        swept.freed.insert(*job, counted);
        if freed >= bytes || rows_left == 0 {
            break;
        }
    }
    Ok(())
}

/// The oldest pieces of a job's output that together have so many bytes; and whether these are all.
fn oldest_pieces(
    transaction: &Transaction<'_>,
    job: JobId,
    bytes: u64,
    limit: usize,
) -> Result<(Vec<(i64, u64)>, bool), rusqlite::Error> {
    let sql = "SELECT rowid, length(data) FROM output INDEXED BY output_order WHERE job = ?1 ORDER BY rowid";
    let mut statement = transaction.prepare(sql)?;
    let mut rows = statement.query([id(job)])?;
    let (mut pieces, mut found) = (Vec::new(), 0);
    while found < bytes && pieces.len() < limit {
        let Some(row) = rows.next()? else { return Ok((pieces, true)) };
        let length: u64 = row.get(1)?;
        pieces.push((row.get(0)?, length));
        found += length;
    }
    Ok((pieces, false))
}

/// Takes rows of a forgotten job away; tells whether there are more.
pub(super) fn sweep(transaction: &Transaction<'_>) -> Result<bool, rusqlite::Error> {
    let job = transaction.query_row("SELECT min(job) FROM garbage", [], |row| row.get::<_, Option<i64>>(0))?;
    let Some(job) = job else { return Ok(false) };
    let limit = signed(ROWS_MAX as u64);
    let mut gone = 0;
    for sql in [
        "DELETE FROM output WHERE rowid IN (SELECT rowid FROM output WHERE job = ?1 LIMIT ?2)",
        "DELETE FROM late_results WHERE job = ?1 AND (place, attempt) IN
         (SELECT place, attempt FROM late_results WHERE job = ?1 LIMIT ?2)",
        "DELETE FROM tasks WHERE job = ?1 AND place IN (SELECT place FROM tasks WHERE job = ?1 LIMIT ?2)",
    ] {
        gone += transaction.execute(sql, [job, limit])?;
    }
    if gone == 0 {
        transaction.execute("DELETE FROM garbage WHERE job = ?1", [job])?;
    }
    transaction.query_row("SELECT EXISTS (SELECT 1 FROM garbage)", [], |row| row.get(0))
}
