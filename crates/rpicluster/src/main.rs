//! `rpicluster`, the program. All that it is lies in the library beside it, which fuzz targets can reach as well.

use std::process::ExitCode;

fn main() -> ExitCode {
    rpicluster::run()
}
