# The libraries that moxie's headers need: found here for moxie's own build and for every find_package(moxie).
# Sets MOXIE_DEPENDENCIES, the targets to link.
include(CMakeFindDependencyMacro)
find_dependency(Eigen3 3.4 CONFIG)
find_dependency(nlohmann_json 3.11 CONFIG)
find_dependency(dnnl CONFIG)
find_dependency(OpenMP COMPONENTS CXX)
find_dependency(PkgConfig)
# xsimd through pkg-config too: the CMake target that Debian 12 ships links a library "xtl" that does not exist.
pkg_check_modules(XSIMD REQUIRED QUIET IMPORTED_TARGET GLOBAL xsimd>=8)
pkg_check_modules(PCRE2 REQUIRED QUIET IMPORTED_TARGET GLOBAL libpcre2-8)
pkg_check_modules(UTF8PROC REQUIRED QUIET IMPORTED_TARGET GLOBAL libutf8proc)

set(MOXIE_DEPENDENCIES Eigen3::Eigen nlohmann_json::nlohmann_json DNNL::dnnl OpenMP::OpenMP_CXX
                       PkgConfig::XSIMD PkgConfig::PCRE2 PkgConfig::UTF8PROC)
