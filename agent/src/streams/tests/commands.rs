use timonier_proto::v1::{ExecRequest, TerminalSize};

use super::*;

fn request(command: &[&str]) -> ExecRequest {
    ExecRequest {
        pod_uid: "u".into(),
        pod: "web".into(),
        container: "c".into(),
        command: command.iter().map(|&word| word.to_owned()).collect(),
        ..Default::default()
    }
}

fn sleeper() -> Container {
    Container::run(&["--network=none", "--init", DEBIAN, "sleep", "600"])
}

async fn open(container: &Container, request: ExecRequest) -> Tool {
    Tool::ask(pod(vec![container.view()]), Request::Exec(request)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_has_its_outputs_its_input_and_its_exit_code() {
    let container = sleeper();
    let script = "echo out; echo err >&2; exit 7";
    let said = open(&container, request(&["sh", "-c", script])).await.hear_all().await;
    assert_eq!((said.out.as_str(), said.error.as_str()), ("out\n", "err\n"));
    assert_eq!((said.end.exit_code, said.end.error.as_str()), (7, ""));

    // wc counts only when its input has ended.
    let counted = ExecRequest { stdin: true, ..request(&["wc", "-c"]) };
    let tool = open(&container, counted).await;
    let many = 40;
    for _ in 0..many {
        tool.say(data(vec![b'x'; 64 << 10])).await;
    }
    tool.say(Frame::HalfClose(true)).await;
    let said = tool.hear_all().await;
    assert_eq!(said.out.trim(), (many * (64 << 10)).to_string());
    assert_eq!(said.end.exit_code, 0);

    let said = open(&container, request(&["/no/such/program"])).await.hear_all().await;
    assert!(said.end.exit_code != 0, "{said:?}");
    let text = format!("{}{}{}", said.out, said.error, said.end.error);
    assert!(text.contains("no such file or directory"), "{said:?}");

    let view = ContainerView { running: false, ..container.view() };
    let tool = Tool::ask(pod(vec![view]), Request::Exec(request(&["true"]))).await;
    let error = tool.hear_all().await.end.error;
    assert!(error.starts_with("container \"c\" in pod \"web\" is not running"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_has_a_size_that_changes() {
    let container = sleeper();
    let size = Some(TerminalSize { columns: 100, rows: 30 });
    let shell = ExecRequest { stdin: true, tty: true, size, ..request(&["sh"]) };
    let mut tool = open(&container, shell).await;
    tool.say(Frame::Resize(TerminalSize { columns: 81, rows: 21 })).await;
    tool.say(data("until stty size | grep '21 81'; do sleep 0.05; done; echo se''en\n")).await;
    let out = tool.hear_until("seen").await;
    assert!(out.contains("21 81"), "{out}");
    tool.say(data("exit 3\n")).await;
    assert_eq!(tool.hear_all().await.end.exit_code, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_who_leaves_ends_the_stream_even_while_the_command_takes_no_input() {
    let container = sleeper();
    let deaf = ExecRequest { stdin: true, ..request(&["sh", "-c", "echo up; sleep 600"]) };
    let mut tool = open(&container, deaf).await;
    tool.hear_until("up").await;
    // More than Docker keeps for it, less than the connection does: a stream that is full to the
    // brim hears of nothing until the command ends.
    for _ in 0..16 {
        tool.say(data(vec![0; 64 << 10])).await;
    }
    tool.leave().await;
}
