//! What a person sees who types something wrong, or asks for help; without any master.

#[test]
fn usage() {
    trycmd::TestCases::new()
        .env("NO_COLOR", "1")
        .env("TIMONIER_CONFIG", "/nonexistent/timonier/config.yaml")
        .env("TIMONIER_LAB_DIR", "/nonexistent/timonier/lab")
        .case("tests/cmd/*.trycmd");
}
