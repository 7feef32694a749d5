//! The reference page is what the commands' own help says. `UPDATE_EXPECT=1 cargo test` renews it.

#[test]
fn the_reference_page_is_up_to_date() {
    expect_test::expect_file!["../../docs/timonctl.md"].assert_eq(&timonctl::help_pages());
}
