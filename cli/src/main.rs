//! argv → command → exit code.

fn main() -> std::process::ExitCode {
    cleat_cli::main()
}
