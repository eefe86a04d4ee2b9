//! Writes `crds/` and the chart's copy of it.

use std::path::Path;
use std::process::ExitCode;

use lockstep_api::crd;

fn main() -> ExitCode {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    for (file, yaml) in [(crd::CRD_FILE, crd::crd_yaml()), (crd::CHART_FILE, crd::chart_yaml())] {
        let path = root.join(file);
        let directory = path.parent().expect("a file in a directory");
        if let Err(error) = std::fs::create_dir_all(directory).and_then(|()| std::fs::write(&path, yaml)) {
            eprintln!("crdgen: failed to write {}: {error}", path.display());
            return ExitCode::FAILURE;
        }
        println!("crdgen: wrote {file}");
    }
    ExitCode::SUCCESS
}
