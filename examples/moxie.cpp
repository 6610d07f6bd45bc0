// moxie: the command-line tool. Each command is a header of tool/.
//
// Exit codes: 0; 1 after an error, which is one line on stderr; 2 for wrong usage; 128 + the signal's number when interrupted.

#include <fcntl.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <exception>
#include <new>
#include <string>

#include "tool/chat.hpp"
#include "tool/common.hpp"
#include "tool/generate.hpp"
#include "tool/grpo.hpp"
#include "tool/inspect.hpp"
#include "tool/pack.hpp"
#include "tool/quantize.hpp"
#include "tool/rollout.hpp"
#include "tool/score.hpp"
#include "tool/tokenize.hpp"

namespace {

/// A message as one line.
void print_error(std::string message) {
  for (char& c : message)
    if (static_cast<unsigned char>(c) < 0x20) c = ' ';
  std::fprintf(stderr, "error: %s\n", message.c_str());
}

/// Files must not get the numbers of closed standard streams: what is printed would go into them.
void occupy_standard_streams() {
  for (int fd = 0; fd <= 2; ++fd)
    if (::fcntl(fd, F_GETFD) == -1) (void)!::open("/dev/null", fd == 2 ? O_WRONLY : O_RDONLY);
}

int parse_and_run(int argc, char** argv) {
  CLI::App app("Mixture-of-Experts language models on CPUs", "moxie");
  app.require_subcommand(1);
  tool::Run run;
  tool::add_inspect(app, run);
  tool::add_generate(app, run);
  tool::add_chat(app, run);
  tool::add_rollout(app, run);
  tool::add_grpo(app, run);
  tool::add_score(app, run);
  tool::add_tokenize(app, run);
  tool::add_quantize(app, run);
  tool::add_pack(app, run);
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& asked) {  // --help
    app.exit(asked);
    return std::fflush(stdout) == 0 ? 0 : 1;
  } catch (const CLI::ParseError& error) {
    std::string command = "moxie";
    for (const CLI::App* sub : app.get_subcommands()) command += " " + sub->get_name();
    std::string message = error.what();
    message.erase(std::min(message.find('\n'), message.size()));
    print_error(message + "; see " + command + " --help");
    return 2;
  }
  return run();
}

}  // namespace

int main(int argc, char** argv) {
  occupy_standard_streams();
  for (const int signal : {SIGPIPE, SIGXFSZ}) std::signal(signal, SIG_IGN);  // a closed pipe or a file limit: errors of writing
  try {
    return parse_and_run(argc, argv);
  } catch (const moxie::Cancelled& error) {
    print_error(error.what());
    return tool::interrupted().load() != 0 ? 128 + tool::interrupted().load() : 1;
  } catch (const std::bad_alloc&) {
    print_error("out of memory; a smaller --chunk or --batch needs less");
  } catch (const std::exception& error) {
    print_error(error.what());
  }
  return 1;
}
