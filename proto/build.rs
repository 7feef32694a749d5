//! Compiles the protocol files; protox does it in Rust, so no `protoc` is needed.
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["agent", "control", "join", "raft", "relay"]
        .map(|name| format!("timonier/v1/{name}.proto"));
    for file in &files {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(files, ["."])?;
    let mut methods = String::from("&[");
    let mut streamed = String::from("&[");
    for file in &descriptors.file {
        for service in &file.service {
            for method in &service.method {
                let streams = (method.client_streaming(), method.server_streaming());
                let (package, service, method) = (file.package(), service.name(), method.name());
                let path = format!("/{package}.{service}/{method}");
                methods.push_str(&format!("\"{path}\", "));
                if streams.0 || streams.1 {
                    streamed.push_str(&format!("(\"{path}\", {}, {}), ", streams.0, streams.1));
                }
            }
        }
    }
    methods.push(']');
    streamed.push(']');
    let folder = std::env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?;
    let folder = std::path::Path::new(&folder);
    std::fs::write(folder.join("methods.rs"), methods)?;
    std::fs::write(folder.join("streamed.rs"), streamed)?;
    // The pure crates use the messages alone, without the clients and servers.
    let grpc_only = "#[cfg(feature = \"grpc\")]";
    tonic_prost_build::configure()
        .bytes(".")
        .client_mod_attribute(".", grpc_only)
        .server_mod_attribute(".", grpc_only)
        .compile_fds(descriptors)?;
    Ok(())
}
