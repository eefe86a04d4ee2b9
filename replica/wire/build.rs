//! Compiles the protocol buffers without `protoc`, and writes the descriptor set that server reflection serves.

use std::error::Error;
use std::path::PathBuf;
use std::{env, fs};

use prost::Message;

const PROTO_DIR: &str = "proto";
const PROTOS: [&str; 3] = ["lockstep/v1/admin.proto", "lockstep/v1/client.proto", "lockstep/v1/peer.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed={PROTO_DIR}");
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);

    let files = protox::compile(PROTOS, [PROTO_DIR])?;
    let mut descriptors = files.clone();
    for file in &mut descriptors.file {
        file.source_code_info = None;
    }
    fs::write(out.join("lockstep.v1.descriptors"), descriptors.encode_to_vec())?;

    tonic_prost_build::configure().bytes(".").emit_rerun_if_changed(false).compile_fds(files)?;
    Ok(())
}
