"""C++ for x86-64 CPUs with AVX-512 and bfloat16 products: decoder steps in one call. Sources: kernels/native."""
