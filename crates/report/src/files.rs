use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::page::export_folder;
use crate::{ExportRecord, LinearRecord, RunRecord, SCHEMA_VERSION};

/// Why a record was not written or read.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// The file system would not.
    #[error("{path}: cannot {action}", path = path.display())]
    Io {
        /// File or folder.
        path: PathBuf,
        /// `create the folder`, `write` or `read`.
        action: &'static str,
        /// What it said.
        source: io::Error,
    },
    /// The file is not a run record.
    #[error("{path}: not a run record", path = path.display())]
    Parse {
        /// File.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// The file is of another version.
    #[error("{path}: schema_version {found}, this program reads {SCHEMA_VERSION}; run the version that wrote it, or make the run anew", path = path.display())]
    SchemaVersion {
        /// File.
        path: PathBuf,
        /// Version in the file.
        found: u32,
    },
}

/// Writes `dir/halfbyte/run.json` and `dir/halfbyte/linears.csv`, each beside its final name first. Folders are made.
pub fn write_run(dir: &Path, run: &RunRecord) -> Result<(), ReportError> {
    let dir = dir.join("halfbyte");
    make_folder(&dir)?;
    write_linears(&dir.join("linears.csv"), &run.linears)?;
    // Last, since it says that the run is finished.
    let path = dir.join("run.json");
    let json = serde_json::to_vec_pretty(run).map_err(|source| ReportError::Parse {
        path: path.clone(),
        source,
    })?;
    write_whole(&path, &json)
}

/// Writes records as a table with a line each, beside its final name first.
pub(crate) fn write_linears(path: &Path, linears: &[LinearRecord]) -> Result<(), ReportError> {
    let csv = linears_csv(linears).map_err(|source| ReportError::Io {
        path: path.to_path_buf(),
        action: "write",
        source,
    })?;
    write_whole(path, &csv)
}

/// Writes a page as one file, beside its final name first. Its folder is made.
pub fn write_page(path: &Path, html: &str) -> Result<(), ReportError> {
    if let Some(folder) = path.parent() {
        make_folder(folder)?;
    }
    write_whole(path, html.as_bytes())
}

pub(crate) fn make_folder(folder: &Path) -> Result<(), ReportError> {
    fs::create_dir_all(folder).map_err(|source| ReportError::Io {
        path: folder.to_path_buf(),
        action: "create the folder",
        source,
    })
}

/// Where the page of the run in `dir` lies.
pub fn page_path(dir: &Path) -> PathBuf {
    dir.join("halfbyte").join("report.html")
}

/// The folder of the run or sweep that `path` names: the folder itself, its `halfbyte` folder, or the run.json or
/// sweep.json in that.
pub fn find_run(path: &Path) -> PathBuf {
    let folder = match path.file_name() {
        Some(name) if name == "run.json" || name == "sweep.json" => path.parent().unwrap_or(path),
        _ => path,
    };
    if !["run.json", "sweep.json"]
        .iter()
        .any(|name| folder.join(name).is_file())
    {
        return folder.to_path_buf();
    }
    match folder.parent() {
        Some(run) if folder.ends_with("halfbyte") => run.to_path_buf(),
        // A name without a folder in it, such as `.`.
        _ => folder.join(".."),
    }
}

/// The checkpoints of the run in `dir` that are still there: format and folder, in the pipeline's order. A run that was moved
/// as a whole is found as it lies now.
pub fn export_places(dir: &Path, run: &RunRecord) -> Vec<(String, PathBuf)> {
    let place = |(index, export): (usize, &ExportRecord)| {
        let here = match export_folder(run, index).trim_end_matches('/') {
            "" => dir.to_path_buf(),
            folder => dir.join(folder),
        };
        [here, PathBuf::from(&export.path)]
            .into_iter()
            .find(|folder| folder.join("config.json").is_file())
            .map(|folder| (export.format.clone(), folder))
    };
    run.exports.iter().enumerate().filter_map(place).collect()
}

/// Reads the run record that [`write_run`] left in `dir`.
pub fn read_run(dir: &Path) -> Result<RunRecord, ReportError> {
    read_record(&dir.join("halfbyte").join("run.json"))
}

/// Reads a record of this version's shape.
pub(crate) fn read_record<T: DeserializeOwned>(path: &Path) -> Result<T, ReportError> {
    #[derive(Deserialize)]
    struct Version {
        schema_version: u32,
    }
    let json = fs::read(path).map_err(|source| ReportError::Io {
        path: path.to_path_buf(),
        action: "read",
        source,
    })?;
    let parse = |source| ReportError::Parse {
        path: path.to_path_buf(),
        source,
    };
    let Version { schema_version } = serde_json::from_slice(&json).map_err(parse)?;
    if schema_version != SCHEMA_VERSION {
        return Err(ReportError::SchemaVersion {
            path: path.to_path_buf(),
            found: schema_version,
        });
    }
    serde_json::from_slice(&json).map_err(parse)
}

/// A sibling takes the bytes and then the name, so that a full disk leaves the older file as it was. Its name is one of those
/// that a later run clears away if this process is killed.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), ReportError> {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut options = tempfile::Builder::new();
    options.prefix(".halfbyte-").suffix(".part");
    #[cfg(unix)]
    {
        // Temporary files are private by default; a report is meant to be read by others, as the umask allows.
        use std::os::unix::fs::PermissionsExt;
        options.permissions(fs::Permissions::from_mode(0o666));
    }
    let written = options.tempfile_in(folder).and_then(|mut file| {
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|error| error.error)?;
        Ok(())
    });
    written.map_err(|source| ReportError::Io {
        path: path.to_path_buf(),
        action: "write",
        // without the temporary file's name, which tells a user nothing
        source: match source.raw_os_error() {
            Some(code) => io::Error::from_raw_os_error(code),
            None => source.kind().into(),
        },
    })
}

/// Reads records that [`write_linears`] wrote. Lists without any index are not told from lists that are not there.
pub(crate) fn read_linears(path: &Path) -> Result<Vec<LinearRecord>, ReportError> {
    let read = |source: csv::Error| ReportError::Io {
        path: path.to_path_buf(),
        action: "read",
        source: source.into(),
    };
    let mut csv = csv::Reader::from_path(path).map_err(read)?;
    let names = csv.headers().map_err(read)?.clone();
    let record = |row: Result<csv::StringRecord, csv::Error>| {
        let row = row.map_err(read)?;
        let fields = names.iter().zip(&row);
        let fields: serde_json::Map<_, _> = fields
            .map(|(name, text)| (name.to_owned(), field(name, text)))
            .collect();
        serde_json::from_value(fields.into()).map_err(|source| ReportError::Parse {
            path: path.to_path_buf(),
            source,
        })
    };
    csv.records().map(record).collect()
}

/// A cell of linears.csv as the record has it.
fn field(column: &str, text: &str) -> serde_json::Value {
    use serde_json::Value;
    // A float is read as Rust reads it, to the last digit.
    let number = |text: &str| match text.parse::<i64>() {
        Ok(whole) => whole.into(),
        Err(_) => text.parse::<f64>().map_or(Value::Null, Value::from),
    };
    match column {
        "linear" | "method" | "hessian" => text.into(),
        "warnings" => text.split("; ").filter(|w| !w.is_empty()).collect(),
        "fallback" if !text.is_empty() => text.into(),
        "sym" | "row_hessian" => (text == "true").into(),
        "int8_outlier_columns" | "outlier_channels" if !text.is_empty() => {
            text.split(' ').map(number).collect()
        }
        _ => number(text),
    }
}

/// Columns of linears.csv: the fields of [`LinearRecord`] in their order.
pub(crate) const COLUMNS: [&str; 38] = [
    "block",
    "linear",
    "out_features",
    "in_features",
    "bits",
    "group_size",
    "sym",
    "method",
    "bits_per_weight",
    "tokens",
    "relative_loss",
    "relative_loss_heldout",
    "relative_loss_rtn",
    "sqnr_db",
    "cosine",
    "damp_asked",
    "damp_used",
    "dead_columns",
    "condition",
    "clipped_share",
    "seconds",
    "warnings",
    "relative_loss_rtn_heldout",
    "bytes_before",
    "bytes_after",
    "hessian",
    "int8_outlier_columns",
    "int8_bits_per_weight",
    "int8_relative_loss",
    "int8_relative_loss_split",
    "row_hessian",
    "target_alpha",
    "target_shift",
    "effective_rank",
    "outlier_channels",
    "finer_group_loss",
    "predicted_kl",
    "fallback",
];

fn linears_csv(linears: &[LinearRecord]) -> io::Result<Vec<u8>> {
    let mut csv = csv::Writer::from_writer(Vec::new());
    csv.write_record(COLUMNS)?;
    for linear in linears {
        csv.write_record(cells(linear))?;
    }
    csv.into_inner().map_err(|error| error.into_error())
}

/// Indices with a space between; nothing where none were asked for.
fn spaced(indices: Option<&[usize]>) -> String {
    let words = indices.unwrap_or_default().iter().map(usize::to_string);
    words.collect::<Vec<_>>().join(" ")
}

/// A cell is empty where a value is not known.
pub(crate) fn cells(linear: &LinearRecord) -> [String; COLUMNS.len()] {
    let maybe = |value: Option<f64>| value.map_or_else(String::new, |value| value.to_string());
    [
        linear.block.to_string(),
        linear.linear.clone(),
        linear.out_features.to_string(),
        linear.in_features.to_string(),
        linear.bits.to_string(),
        linear.group_size.to_string(),
        linear.sym.to_string(),
        linear.method.clone(),
        linear.bits_per_weight.to_string(),
        linear.tokens.to_string(),
        linear.relative_loss.to_string(),
        maybe(linear.relative_loss_heldout),
        linear.relative_loss_rtn.to_string(),
        maybe(linear.sqnr_db),
        maybe(linear.cosine),
        maybe(linear.damp_asked),
        linear.damp_used.to_string(),
        linear.dead_columns.to_string(),
        maybe(linear.condition),
        linear.clipped_share.to_string(),
        linear.seconds.to_string(),
        linear.warnings.join("; "),
        maybe(linear.relative_loss_rtn_heldout),
        linear.bytes_before.to_string(),
        linear.bytes_after.to_string(),
        linear.hessian.as_str().to_string(),
        spaced(linear.int8_outlier_columns.as_deref()),
        maybe(linear.int8_bits_per_weight),
        maybe(linear.int8_relative_loss),
        maybe(linear.int8_relative_loss_split),
        linear.row_hessian.to_string(),
        maybe(linear.target_alpha),
        maybe(linear.target_shift),
        maybe(linear.effective_rank),
        spaced(linear.outlier_channels.as_deref()),
        maybe(linear.finer_group_loss),
        maybe(linear.predicted_kl),
        linear.fallback.clone().unwrap_or_default(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::run;

    #[test]
    fn a_run_reads_back_as_it_was_written_and_leaves_nothing_beside() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("deep/out");
        write_run(&out, &run()).unwrap();
        write_run(&out, &run()).unwrap();
        assert_eq!(read_run(&out).unwrap(), run());
        let mut names: Vec<_> = fs::read_dir(out.join("halfbyte"))
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["linears.csv", "run.json"]);
    }

    #[test]
    fn the_csv_has_the_fields_of_the_record_as_columns() {
        let record = serde_json::to_value(&run().linears[0]).unwrap();
        let fields: Vec<&String> = record.as_object().unwrap().keys().collect();
        assert_eq!(fields, COLUMNS.iter().collect::<Vec<_>>());
        let text = String::from_utf8(linears_csv(&run().linears).unwrap()).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with(
            "block,linear,out_features,in_features,bits,group_size,sym,method,bits_per_weight,tokens,relative_loss,\
             relative_loss_heldout,relative_loss_rtn,sqnr_db,cosine,damp_asked,damp_used,dead_columns,condition,\
             clipped_share,seconds,warnings,"
        ));
        assert_eq!(
            lines[1],
            "0,self_attn.q_proj,64,64,4,32,true,gptq,4.5,1000,0.001,0.002,0.004,22.5,0.999,,0.01,0,1500,0.001,0.25,,0.006,8192,2304,input,3 17,8.75,0.003,0.001,false,0.75,,12.5,40 7,0.8,,"
        );
        assert_eq!(lines.len(), 1 + run().linears.len());
        assert!(lines[4].contains(",\"damping raised, Cholesky failed twice; 3 dead columns\","));
    }

    #[test]
    fn linears_read_back_from_the_csv_as_they_were() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("linears.csv");
        let mut linears = run().linears;
        linears[0].group_size = -1;
        linears[0].relative_loss = 0.1 + 0.2;
        linears[0].condition = None;
        linears[1].sqnr_db = Some(1e-17);
        linears[2].predicted_kl = Some(3.0);
        write_linears(&path, &linears).unwrap();
        assert_eq!(read_linears(&path).unwrap(), linears);
        linears[0].relative_loss = f64::NAN;
        write_linears(&path, &linears).unwrap();
        assert!(read_linears(&path).unwrap()[0].relative_loss.is_nan());
        fs::write(&path, "block,linear\n0,a\n").unwrap();
        let told = read_linears(&path).unwrap_err().to_string();
        assert!(told.ends_with("linears.csv: not a run record"), "{told}");
    }

    #[test]
    fn a_record_from_before_drift_and_worst_tokens_is_read() {
        let dir = tempfile::tempdir().unwrap();
        write_run(dir.path(), &run()).unwrap();
        let path = dir.path().join("halfbyte/run.json");
        let mut json: serde_json::Value =
            serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let evaluation = json["evaluation"].as_object_mut().unwrap();
        assert!(
            evaluation.remove("stream_error").is_some()
                && evaluation.remove("worst_tokens").is_some()
        );
        for phase in json["summary"]["phases"].as_array_mut().unwrap() {
            assert!(
                phase
                    .as_object_mut()
                    .unwrap()
                    .remove("peak_rss_growth_bytes")
                    .is_some()
            );
        }
        fs::write(&path, json.to_string()).unwrap();
        let older = read_run(dir.path()).unwrap();
        assert!(older.evaluation.unwrap().worst_tokens.is_empty());
    }

    #[test]
    fn a_run_is_found_by_its_folder_the_folder_inside_and_its_record() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        write_run(&out, &run()).unwrap();
        for path in [
            out.clone(),
            out.join("halfbyte"),
            out.join("halfbyte/run.json"),
        ] {
            assert_eq!(find_run(&path), out, "{}", path.display());
        }
        assert_eq!(page_path(&out), out.join("halfbyte/report.html"));
        assert_eq!(find_run(Path::new("no/where")), Path::new("no/where"));
    }

    #[test]
    fn a_page_is_written_whole_into_a_folder_that_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/page.html");
        write_page(&path, "<p>").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "<p>");
        assert_eq!(fs::read_dir(dir.path().join("new")).unwrap().count(), 1);
    }

    #[test]
    fn a_loss_that_is_no_number_does_not_lose_the_record() {
        let dir = tempfile::tempdir().unwrap();
        let mut broken = run();
        broken.linears[0].relative_loss = f64::NAN;
        write_run(dir.path(), &broken).unwrap();
        assert!(
            read_run(dir.path()).unwrap().linears[0]
                .relative_loss
                .is_nan()
        );
    }

    #[test]
    fn errors_name_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let missing = read_run(dir.path()).unwrap_err().to_string();
        assert!(missing.ends_with("run.json: cannot read"), "{missing}");
        fs::create_dir(dir.path().join("halfbyte")).unwrap();
        let path = dir.path().join("halfbyte/run.json");
        fs::write(&path, "{}").unwrap();
        assert!(
            read_run(dir.path())
                .unwrap_err()
                .to_string()
                .ends_with("run.json: not a run record")
        );
        fs::write(&path, r#"{"schema_version": 99}"#).unwrap();
        assert!(read_run(dir.path()).unwrap_err().to_string().ends_with(
            "run.json: schema_version 99, this program reads 1; run the version that wrote it, or make the run anew"
        ));
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let blocked = write_run(&file, &run()).unwrap_err().to_string();
        assert!(
            blocked.ends_with("halfbyte: cannot create the folder"),
            "{blocked}"
        );
    }
}
