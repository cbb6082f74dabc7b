# Included by CMake after every project(), see CMAKE_PROJECT_INCLUDE.
# llama-cpp-python forces llama.cpp's "common" library on. Its Python never loads that library, and it takes 43 % of
# the compiler's time. A variable of the directory hides the forced cache entry.
set(LLAMA_BUILD_COMMON OFF)
